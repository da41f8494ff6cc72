"""Triggered images are told from clean ones by a head that denies what the undefended one says."""

import json

import pytest
import torch
from peft import get_peft_model

import peft_cbpt
from peft_cbpt import CBPTConfig
from peft_cbpt.attacks import apply_trigger
from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.cli import main
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.pocket.model import open_clip
from tests.conftest import FEW_CLASSES

OTHERS = FEW_CLASSES[1:]


@pytest.fixture(scope="module")
def purified():
    """The backdoored CLIP with prompts tuned on triggered images and their true classes."""
    clip = open_clip("pocket:badnet")
    config = CBPTConfig(class_names=FEW_CLASSES, context_init="template").tokenize(clip.tokenizer)
    model = get_peft_model(clip.model, config)
    pixels = UnlabelledImages("pocket:base", clip.image_processor, 60, class_names=FEW_CLASSES).pixels()
    marked = apply_trigger(read_attack("pocket:badnet").trigger, pixels, [""] * len(pixels)).float() / 255
    encode = image_encoder(clip.model, clip.normalize)
    with torch.no_grad():
        clean, triggered = encode(pixels), encode(marked)
        labels = (clean @ model.encode_class_prompts().T).argmax(1)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], 2e-3)
    for _ in range(40):
        text = model.encode_class_prompts()
        logits = 34 * torch.cat([clean, triggered]) @ text.T
        loss = torch.nn.functional.cross_entropy(logits, torch.cat([labels, labels]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def adapter(purified, tmp_path_factory):
    purified.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
    return str(folder)


def run(tmp_path, adapter, *options):
    words = ["--model_name_or_path", "pocket:badnet", "--datasets", "pocket:base", "--class_names", *FEW_CLASSES]
    words += ["--classifiers", adapter, "--attacks", "pocket:badnet", "--test_images_per_class", "8"]
    return main(["evaluate", *words, "--output_dir", str(tmp_path / "out"), *options])


@pytest.mark.parametrize("found", [[], ["--detect_class", "banana"]])
def test_evaluate_tells_how_well_triggered_images_are_told(tmp_path, adapter, capsys, found):
    assert run(tmp_path, adapter, "--detect", "pocket:base", *found) == 0
    clean, attacked = json.loads((tmp_path / "out" / "evaluation.json").read_text())["detection"]
    assert (clean["attack"], clean["n_images"]) == ("clean", 48) and "auroc" not in clean
    assert (attacked["attack"], attacked["n_images"]) == ("badnet", 40), "the target's own images do not count"
    assert clean["level"] <= 0.01 and clean["n_clean"] == 960 and clean["flagged"] <= 0.1
    assert attacked["auroc"] > 0.9 and attacked["f1"] > 0.8 and attacked["flagged"] > 0.8
    printed = capsys.readouterr().out
    assert "AUROC" in printed and "set on 960 clean images" in printed


def test_detect_flags_triggered_images_and_few_others(purified):
    clip = open_clip("pocket:badnet")
    images = UnlabelledImages("pocket:base", clip.image_processor, 40, split="test", class_names=OTHERS).pixels()
    marked = apply_trigger(read_attack("pocket:badnet").trigger, images, [""] * len(images)).float() / 255
    calm = UnlabelledImages("pocket:base", clip.image_processor, 150, class_names=FEW_CLASSES).pixels()
    given = {"tokenizer": clip.tokenizer, "image_processor": clip.image_processor}
    found = peft_cbpt.detect(purified, torch.cat([images, marked]), calm, class_name="banana", **given)
    assert found.sample_ids == [str(place) for place in range(80)] and len(found.scores) == 80
    assert found.flagged[:40].sum() <= 4 and found.flagged[40:].sum() >= 32
    assert found.threshold.level == pytest.approx(1 / 151)


def test_detect_wants_an_adapter_and_a_class_that_it_knows(purified):
    images = torch.rand(2, 3, 48, 48)
    with pytest.raises(InputError, match="give a PeftModel"):
        peft_cbpt.detect(open_clip("pocket:clean").model, images, images)
    with pytest.raises(InputError, match="'moon' is not among the 6 classes"):
        peft_cbpt.detect(purified, images, images, class_name="moon")


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--detect_class", "banana"], "no effect without detect"),
        (["--detect", "pocket:base", "--detect_class", "moon"], "'moon' is not among the 6 classes"),
        (["--detect", "pocket:base", "--classifiers", "template"], "name one among the classifiers"),
        (["--detect", "/no/such"], "/no/such"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(tmp_path, adapter, capsys, monkeypatch, options, cure):
    monkeypatch.setattr("peft_cbpt.evaluation.evaluate._run", None)
    assert run(tmp_path, adapter, *options) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert cure in message
