import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel

from peft_cbpt.cli import main
from peft_cbpt.pocket.model import resolve_model


@pytest.fixture(scope="module")
def logits(finished_run):
    """Of the adapter, with the pixels they are for."""
    model = PeftModel.from_pretrained(
        CLIPModel.from_pretrained(resolve_model("pocket:badnet"), dtype=torch.float32), finished_run
    )
    pixels = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    return pixels, model.eval()(pixel_values=pixels).logits_per_image.detach()


def test_a_clip_of_its_own(finished_run, logits, tmp_path):
    assert main(["export", str(finished_run), "--kind", "clip", "--output_dir", str(tmp_path / "clip")]) == 0
    assert not list((tmp_path / "clip").glob(".*"))
    clip, tokenizer = CLIPModel.from_pretrained(tmp_path / "clip"), AutoTokenizer.from_pretrained(tmp_path / "clip")
    classes = json.loads((tmp_path / "clip" / "classes.json").read_text())
    text = [classes["hypothesis_template"].format(name) for name in classes["class_names"]]
    pixels, wanted = logits
    found = clip(**tokenizer(text, padding=True, return_tensors="pt"), pixel_values=pixels).logits_per_image
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_matrix_of_text_features(finished_run, logits, tmp_path):
    assert main(["export", "--folder", str(finished_run), "--kind=text_features", "--output_dir", str(tmp_path)]) == 0
    head = load_file(tmp_path / "text_features.safetensors")["text_features"]
    classes = json.loads((tmp_path / "classes.json").read_text())
    assert classes["class_names"] == ["banana", "dog", "pizza", "rocket"] and head.shape == (4, 128)
    base = CLIPModel.from_pretrained(resolve_model("pocket:badnet"), dtype=torch.float32).eval()
    pixels, wanted = logits
    features = base.get_image_features(pixel_values=pixels).pooler_output
    found = classes["logit_scale"] * torch.nn.functional.normalize(features, dim=-1) @ head.T
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_an_adapter_without_results_names_its_base_itself(purified, tmp_path):
    (purified / "results.json").unlink()
    assert main(["export", str(purified), "--kind", "text_features", "--output_dir", str(tmp_path / "head")]) == 0


def no_base(folder):
    (folder / "results.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone"}))


def name_with_a_period(folder):
    """A class name that has other tokens with a context vector behind it than with a period."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"class_token_position": "front", "context_init": "normal"}
    names = ["washington d.c.", *config["class_names"][1:]]
    recorded = {name: None for name in config if name.endswith(("_token_ids", "_lengths", "_token_id", "_side"))}
    file.write_text(json.dumps(config | recorded | {"class_names": names}))


BAD_INPUTS = {
    "no folder": (lambda folder: shutil.rmtree(folder), "there is no folder"),
    "no adapter": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model"),
    "damaged adapter": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "cannot be used"),
    "config that is no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be used"),
    "base not found": (no_base, "--model_name_or_path"),
    "prompt that cannot be written": (name_with_a_period, "text_features"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gives_one_line_that_names_the_cure(purified, tmp_path, capsys, case):
    spoil, cure = BAD_INPUTS[case]
    spoil(purified)
    assert main(["export", str(purified), "--output_dir", str(tmp_path / "out")]) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(message) == 1 and cure in message[0], message
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--output_dir", "{folder}"], "adapter's own folder"),
        (["--output_dir", "{folder}/x", "--kind", "onnx"], "invalid choice"),
        (["--output_dir", "{folder}/x", "--model_name_or_path", "/gone"], "check --model_name_or_path"),
        ([], "--output_dir"),
    ],
)
def test_bad_options(purified, capsys, options, cure):
    before = sorted(purified.rglob("*"))
    words = [option.format(folder=purified) for option in options]
    assert main(["export", str(purified), *words]) == 2
    assert cure in capsys.readouterr().err
    left = [file for file in purified.rglob("*") if file not in before and file.is_file()]
    assert not left and sorted(purified.glob("*.*")) == [
        file for file in before if file.parent == purified and "." in file.name
    ]
