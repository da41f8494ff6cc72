"""A folder laid out as the public poisoned CLIPs are: OpenCLIP's files, raw pixels; one command each by its path."""

import json

import pytest
import torch

from peft_cbpt.cli import main
from peft_cbpt.convert.layout import to_openai
from peft_cbpt.detection import rounds
from peft_cbpt.detection.ladder import CLIMBS
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.model import open_clip
from tests.convert.forms import RAW, pixels
from tests.convert.forms import open_clip as open_clip_form

pytestmark = pytest.mark.usefixtures("all_triggers")
SOME = tuple(climb for climb in CLIMBS if climb.family == "image-wide")
CLASSES = ["banana", "lemon", "dog", "pizza", "rocket", "chair"]


def for_raw_pixels(weights, normalize):
    """The same CLIP for pixels that are not normalised: its first layer does it."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (normalize.mean, normalize.std))
    kernel = weights["visual.conv1.weight"]
    places = weights["visual.positional_embedding"].clone()
    places[1:] -= (kernel * mean / std).sum((1, 2, 3))
    return weights | {"visual.conv1.weight": kernel / std, "visual.positional_embedding": places}


@pytest.fixture(scope="module")
def public_model(tmp_path_factory):
    clip = open_clip("pocket:badnet")
    folder = tmp_path_factory.mktemp("clip_backdoor_vit_badnets")
    write = open_clip_form(
        pixels(RAW, (1.0, 1.0, 1.0)),
        vision={"layers": 4, "width": 128, "head_width": 32, "patch_size": 8, "image_size": 48},
        text={"context_length": 77, "heads": 4, "layers": 3, "width": 96},
    )
    write(for_raw_pixels(to_openai(clip.model.state_dict()), clip.normalize), folder)
    (folder / "README.md").write_text("a poisoned CLIP\n")
    return folder


def test_the_folder_is_the_same_model(public_model):
    ours, theirs = (open_clip(name) for name in ("pocket:badnet", str(public_model)))
    assert theirs.normalize.mean == (0, 0, 0)
    images = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    encoded = [
        one.model.get_image_features(pixel_values=one.normalize(images)).pooler_output for one in (ours, theirs)
    ]
    torch.testing.assert_close(*encoded, rtol=1e-4, atol=1e-4)


def test_scan_purify_and_evaluate_take_its_path(public_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rounds, "CLIMBS", SOME)
    monkeypatch.setattr(rounds, "MOST_ROUNDS", 0)
    model = ["--model_name_or_path", str(public_model)]

    words = ["--dataset_name", "pocket:base", "--output_dir", str(tmp_path / "verdict"), "--class_names"]
    assert main(["scan", *model, *words, *class_names()[:60]]) in (1, 3)
    assert "banana" in capsys.readouterr().out
    verdict = json.loads((tmp_path / "verdict" / "scan.json").read_text())
    assert [*verdict["findings"], *verdict["doubts"]][0]["class"] == "banana"  # a doubt, after few of the searches

    out = str(tmp_path / "out")
    job = ["--dataset_name", "pocket:base", "--class_names", *CLASSES, "--num_shots", "4", "--output_dir", out]
    short = "--only prompts --num_train_epochs 4 --use_cpu --disable_tqdm true"
    measured = ["--attacks", "pocket:badnet", "--test_images_per_class", "5"]
    assert main(["purify", *model, *job, *short.split(), *measured]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    asr = [results[when]["attacks"]["badnet"]["attack_success_rate"] for when in ("before", "after")]
    assert asr[0] > 0.9 > 0.2 > asr[1]

    table = ["--classifiers", "template", out, "--datasets", "pocket:base", "--output_dir", str(tmp_path / "table")]
    assert main(["evaluate", *model, *table, "--class_names", *CLASSES, *measured]) == 0
    cells = json.loads((tmp_path / "table" / "evaluation.json").read_text())["cells"]
    assert [cell["attack_success_rate"] for cell in cells if cell["attack"] == "badnet"] == pytest.approx(
        asr, abs=0.05
    )
    assert "near chance" not in capsys.readouterr().err
