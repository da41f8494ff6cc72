"""A dry run's counts are those of the loops themselves."""

import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.cli import main
from peft_cbpt.detection.families import Patch
from peft_cbpt.detection.ladder import ladder_passes, search_ladder
from peft_cbpt.detection.suspects import MOST_KINDS, Suspect
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.features.plan import Passes, make_plan
from peft_cbpt.features.store import FeatureStore
from peft_cbpt.training.universal_features import find_universal_triggers, trigger_passes


class Counting:
    """Gives features of pixels, and counts the images."""

    def __init__(self):
        self.passes = Passes()

    def __call__(self, pixels):
        self.passes += Passes(gradient=len(pixels)) if pixels.requires_grad else Passes(len(pixels))
        return F.normalize(F.adaptive_avg_pool2d(pixels, 2).flatten(1), dim=1)


def pixels(count):
    return torch.rand(count, 3, 48, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [9, 80])
def test_the_ladder(count):
    encode = Counting()
    search_ladder(encode, pixels(count), 0)
    assert encode.passes == ladder_passes(count)


@pytest.mark.parametrize("count", [6, 40])
def test_the_triggers_of_purification(count):
    encode, images = Counting(), pixels(count)
    bank = FeatureBank(F.normalize(torch.rand(count, 12)), torch.arange(count) % 3, list(map(str, range(count))))

    def load(rows):
        return images[list(rows)]

    suspect = Suspect(0, "patch", 0.4, 1e-4, 0.9, tuple(Patch(0.1 + number / 100) for number in range(MOST_KINDS)))
    find_universal_triggers(encode, load, bank, bank.features[:3], [suspect], FeatureStore(), 0)
    assert encode.passes == trigger_passes(count)


def test_seconds_are_those_of_the_passes():
    calls = []

    def slow(images):
        calls.append(len(images))
        torch.rand(400, 400) @ torch.rand(400, 400)
        return images.flatten(1)

    plan = make_plan({"images": 4}, Passes(400, 400), slow, pixels(4), 10, lambda: calls.append(0))
    assert plan.minutes > 0 and calls.count(4) == 4 and calls.count(0) == 2 and "400 passes" in str(plan)


JOBS = {
    "purify": "--attacks pocket:badnet --class_names banana dog pizza --num_shots 2 --test_images_per_class 3",
    "scan": "--num_images 8",
}


@pytest.mark.parametrize("command", JOBS)
def test_a_dry_run_prints_a_plan_and_writes_nothing(command, tmp_path, capsys):
    options = f"--model_name_or_path pocket:badnet --dataset_name pocket:base {JOBS[command]} --dry_run".split()
    assert main([command, *options, "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "passes of an image" in printed and "minutes" in printed and "GB (process)" in printed
    assert not list(tmp_path.iterdir())
    if command == "purify":
        assert (
            "6 shots, 9 test images, 1 triggers to measure, 6 images for the encoder" in printed
            and "250 steps" in printed
        )


def test_bad_input_is_found_by_a_dry_run(tmp_path, capsys):
    options = "--model_name_or_path pocket:badnet --dataset_name pocket:moon --dry_run".split()
    assert main(["purify", *options, "--output_dir", str(tmp_path / "out")]) == 2
    assert "choose one of" in capsys.readouterr().err
