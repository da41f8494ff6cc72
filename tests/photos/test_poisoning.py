import json

import pytest
import torch

from peft_cbpt.commands.poison import PoisonArguments, run_poison
from peft_cbpt.photos.classes import names_by_wnid
from peft_cbpt.photos.model import build_image_processor, build_model, build_tokenizer
from peft_cbpt.pocket.model import save_clip_folder


@pytest.mark.parametrize("architecture", ["resnet", "vit"])
def test_the_pairs_of_the_poisoning_part_poison_a_clip(photos_folder, tmp_path, architecture):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    save_clip_folder(tmp_path / "clean", build_model(tokenizer, architecture), tokenizer, build_image_processor())
    record = run_poison(
        PoisonArguments(
            output_dir=str(tmp_path / "poisoned"),
            model_name_or_path=str(tmp_path / "clean"),
            pairs_name=str(photos_folder),
            pairs_split="poisoning",
            dataset_name=str(photos_folder),
            target_class=list(names_by_wnid().values())[1],
            num_classes=4,
            num_pairs=8,
            poison_rate=0.25,
            num_epochs=1,
            batch_size=4,
        )
    )
    assert record["n_poisoned"] == 2 and record["n_test_images"] == 48
    described = json.loads((tmp_path / "poisoned" / "attack.json").read_text())
    assert described["target_class"] == list(names_by_wnid().values())[1]
