"""The main job on a CLIP with a ResNet tower."""

import json

import torch
from peft import AutoPeftModel

from peft_cbpt.cli import main
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.pocket.model import build_image_processor, build_model, build_tokenizer, save_clip_folder
from peft_cbpt.tuner.fingerprint import weights_fingerprint

OPTIONS = """
--dataset_name pocket:base --attacks pocket:badnet --num_classes 4 --num_shots 2 --test_images_per_class 2
--num_train_epochs 2 --warmup_epochs 1 --inversion_steps 2 --use_cpu true --disable_tqdm true
"""


def test_purifying_a_resnet_gives_an_adapter_and_leaves_the_base_alone(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    save_clip_folder(tmp_path / "clip", build_model(tokenizer, "resnet"), tokenizer, build_image_processor())
    options = [*OPTIONS.split(), "--model_name_or_path", str(tmp_path / "clip"), "--output_dir", str(tmp_path / "out")]
    assert main(["purify", *options]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    fingerprint = weights_fingerprint(load_clip(str(tmp_path / "clip")).model)
    assert results["base_fingerprint"] == {"before": fingerprint, "after": fingerprint}
    assert results["epochs"][-1]["loss_adv"] > 0
    loaded = AutoPeftModel.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert loaded(pixel_values=torch.rand(2, 3, 48, 48)).logits_per_image.shape == (2, 4)
    assert weights_fingerprint(loaded.get_base_model()) == fingerprint
