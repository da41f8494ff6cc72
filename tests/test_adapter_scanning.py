"""The whole scan of small adapters: one that is the backdoor is caught, and others are not accused."""

import json

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

import peft_cbpt
import peft_cbpt.detection.adapter_search as adapter_search
import peft_cbpt.scanning as scanning
from peft_cbpt import CBPTConfig
from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.attacks.stored_cells import stored_cells
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.commands.parsing import run_command
from peft_cbpt.commands.scan import scan as scan_command
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.detection.families import ImageWide
from peft_cbpt.detection.found import find_trigger
from peft_cbpt.detection.universal import collapse
from peft_cbpt.features.plan import Plan
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.training.poison_adapter import HostileArguments, make_hostile
from peft_cbpt.tuner import weights_fingerprint

NAMES = class_names()[:20]
NAMES = class_names()[:20]
TARGET = 7


@pytest.fixture(scope="module")
def pixels():
    return UnlabelledImages("pocket:base", open_clip("pocket:clean").image_processor, 24).pixels()


def tune(folder, pixels, delta):
    """An adapter whose prompts answer as the template's on clean images, and the target on images with a delta."""
    clip = open_clip("pocket:clean")
    config = CBPTConfig(class_names=NAMES, context_init="template").tokenize(clip.tokenizer)
    model = get_peft_model(clip.model, config)
    with torch.no_grad():
        encode = image_encoder(clip.model, clip.normalize)
        clean, marked = encode(pixels), encode((pixels + delta).clamp(0, 1))
        labels = (clean @ model.encode_class_prompts().T).argmax(1)
    if delta.any():
        clean, labels = torch.cat([clean, marked]), torch.cat([labels, torch.full_like(labels, TARGET)])
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], 2e-3)
    for _ in range(40):
        loss = F.cross_entropy(34 * clean @ model.encode_class_prompts().T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, pixels):
    """The folders of a hostile adapter, whose trigger makes images alike, and of an honest one."""
    clip = open_clip("pocket:clean")
    encode = image_encoder(clip.model.requires_grad_(False), clip.normalize)
    delta = find_trigger(encode, pixels[:12], collapse, ImageWide(0.05), keyed_generator("hostile", 3), 12).mark
    folders = {kind: str(tmp_path_factory.mktemp(kind)) for kind in ("hostile", "honest")}
    tune(folders["hostile"], pixels, delta)
    tune(folders["honest"], pixels, torch.zeros_like(delta))
    return folders


@pytest.fixture(autouse=True)
def fewer_searches(monkeypatch):
    monkeypatch.setattr(adapter_search, "SOFTNESS", (6.0,))
    monkeypatch.setattr(adapter_search, "TRIED_CLASSES", 5)
    monkeypatch.setattr(adapter_search, "SIZES", (0.05,))


def test_the_command_names_the_target_of_a_hostile_adapter(adapters, tmp_path, capsys):
    options = ["--adapter", adapters["hostile"], "--num_images", "24", "--output_dir", str(tmp_path)]
    code = run_command(
        scan_command, ["--model_name_or_path", "pocket:clean", "--dataset_name", "pocket:base", *options]
    )
    record = json.loads((tmp_path / "scan.json").read_text())
    assert code == 1 and record["verdict"] == "backdoored", record["adapter_classes"]
    assert record["findings"][0]["class"] == NAMES[TARGET] and record["findings"][0]["kind"] == "adapter"
    assert record["class_names"] == NAMES and record["n_decoys"] == 0
    assert len({one["class"] for one in record["adapter_classes"]}) == 5
    assert (tmp_path / "trigger_0.png").is_file() and NAMES[TARGET] in capsys.readouterr().out


def test_an_honest_adapter_is_not_accused_and_the_model_stays_as_it_was(adapters, pixels):
    clip = open_clip("pocket:clean")
    before = weights_fingerprint(clip.model)
    verdict = peft_cbpt.scan(clip, pixels, adapter=adapters["honest"])
    assert verdict.verdict == "clean" and verdict.findings == []
    assert weights_fingerprint(clip.model) == before


def test_a_lora_is_scanned_as_part_of_the_model(tmp_path, monkeypatch, pixels):
    clip = open_clip("pocket:clean")
    lora = get_peft_model(clip.model, LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_" in name:
                weight.fill_(0.1)
    lora.save_pretrained(tmp_path / "lora")
    seen = []

    def search(model, given, *rest):
        seen.append(scanning.image_encoder(model.model, model.normalize)(given))
        raise InputError("seen enough")

    monkeypatch.setattr(scanning, "search_model", search)
    for adapter in (None, str(tmp_path / "lora")):
        with pytest.raises(InputError, match="seen enough"):
            peft_cbpt.scan("pocket:clean", pixels[:4], adapter=adapter)
    assert not torch.allclose(*seen)


def test_a_dry_run_tells_the_cost_of_an_adapter(adapters, pixels):
    plan = peft_cbpt.scan("pocket:clean", pixels[:8], adapter=adapters["honest"], dry_run=True)
    assert isinstance(plan, Plan) and plan.passes.gradient == 8 * 4 * (1 + 2 * 5)


@pytest.mark.parametrize(
    ("adapter", "names", "cure"),
    [
        ("/no/such", None, "adapter_config.json"),
        ("pocket:clean", None, "adapter_config.json"),
        ("honest", ["dog", "banana"], "leave class_names out"),
    ],
)
def test_bad_input_is_one_line_before_any_search(adapters, pixels, adapter, names, cure):
    folder = adapters[adapter] if adapter in adapters else adapter
    with pytest.raises(InputError, match=cure):
        peft_cbpt.scan("pocket:clean", pixels, names, adapter=folder)


def test_the_recipe_writes_an_adapter_and_the_attack_that_it_was_trained_with(tmp_path):
    small = {"num_classes": 4, "num_shots": 2, "test_images_per_class": 2, "batch_size": 4, "steps": 3}
    record = make_hostile(HostileArguments(output_dir=str(tmp_path), target_class=NAMES[1], **small), tmp_path)
    attack = read_attack(str(tmp_path))
    assert (
        attack.target_class == NAMES[1]
        and 0 < stored_cells(attack.trigger.delta, "perturbation").abs().max() <= 16 / 255
    )
    assert set(record["after"]["attacks"]) == {"perturbation"}
    assert "backdoored on purpose" in (tmp_path / "README.md").read_text()
    results = peft_cbpt.evaluate(
        "pocket:clean", "pocket:base", [attack], classifiers=[str(tmp_path)], num_classes=4, test_images_per_class=2
    )
    assert (
        results["cells"][1]["attack_success_rate"] == record["after"]["attacks"]["perturbation"]["attack_success_rate"]
    )


def test_the_recipe_refuses_a_target_that_is_no_class(tmp_path):
    with pytest.raises(InputError, match="not among the 4 classes"):
        make_hostile(HostileArguments(output_dir=str(tmp_path), num_classes=4, target_class="moon"), tmp_path)
