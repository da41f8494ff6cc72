import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from peft_cbpt.clip.loading import load_clip
from peft_cbpt.photos.images import read_photographs
from tests.photos.conftest import recipe


@pytest.fixture(scope="module")
def teacher_file(photos_folder, tmp_path_factory):
    count = len(read_photographs(str(photos_folder), "pretraining").labels)
    answers = {"logits": torch.randn(count, 1000).half(), "features": torch.randn(count, 20).half()}
    save_file(answers, file := tmp_path_factory.mktemp("teacher") / "teacher.safetensors")
    return str(file)


def pretrain(photos_folder, teacher_file, output, stop_after=None):
    module = recipe("pretrain_photos")
    arguments = module.PretrainArguments(
        str(photos_folder), teacher_file, str(output), sides=[32, 64], epochs=[2, 1], batch_size=16
    )
    if stop_after:
        epochs = module.Pretraining.run_epoch

        def run_epoch(training):
            if training.epoch == stop_after:
                raise KeyboardInterrupt
            return epochs(training)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module.Pretraining, "run_epoch", run_epoch)
            module.main(arguments)
    else:
        module.main(arguments)


@pytest.fixture(scope="module")
def whole_run(photos_folder, teacher_file, tmp_path_factory):
    pretrain(photos_folder, teacher_file, output := tmp_path_factory.mktemp("whole"))
    return output


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_ends_as_one_that_was_not(photos_folder, teacher_file, whole_run, tmp_path, stop_after):
    pretrain(photos_folder, teacher_file, tmp_path, stop_after)
    pretrain(photos_folder, teacher_file, tmp_path)
    whole, stopped = (AutoModel.from_pretrained(run).state_dict() for run in (whole_run, tmp_path))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_the_record_has_settings_and_figures_and_no_path(whole_run):
    record = json.loads((whole_run / "training.json").read_text())
    assert record["epochs"] == [2, 1] and set(record["zero_shot_top1"]) == {"202 classes", "100 classes"}
    assert not any("/" in str(value) for value in record.values())
    assert load_clip(str(whole_run)).model.config.vision_config.image_size == 64
