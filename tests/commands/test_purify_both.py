"""`purify` makes a repaired encoder with prompts on it: what it leaves, and that everybody measures the right one."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPModel

from peft_cbpt.cli import main
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.evaluation.classifiers import beside_undefended
from peft_cbpt.evaluation.detect import detect
from peft_cbpt.evaluation.evaluate import evaluate
from peft_cbpt.hub.opening import load_adapter, load_base
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.reports.report import open_run, read_run
from peft_cbpt.training.cbpt_trainer import CBPTTrainer
from peft_cbpt.training.encoder_trainer import EncoderPurifier
from tests.commands.conftest import SMALL_JOB
from tests.conftest import FEW_CLASSES
from tests.fresh import run_in_two_processes

SMALL_ENCODER = {
    "encoder_steps": 3,
    "encoder_batch_size": 8,
    "encoder_rank": 2,
    "encoder_learning_rate": 0.01,
    "encoder_kinds": ["wave"],
}


def run(folder, *options, **settings):
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(SMALL_JOB | {"output_dir": str(folder), "only": None} | settings))
    return main(["purify", "--config", str(config), *options])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of a small run of both stages; copy it before changing it."""
    folder = tmp_path_factory.mktemp("both") / "out"
    assert run(folder, **SMALL_ENCODER) == 0
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a small run that makes the encoder alone."""
    folder = tmp_path_factory.mktemp("encoder") / "out"
    settings = {name: value for name, value in SMALL_JOB.items() if "epochs" not in name and "batch" not in name}
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings | SMALL_ENCODER | {"output_dir": str(folder), "only": "encoder"}))
    assert main(["purify", "--config", str(config)]) == 0
    return folder


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def features(model, pixels):
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        return base.eval().get_image_features(pixel_values=pixels).pooler_output


def base_clip():
    return CLIPModel.from_pretrained(resolve_model("pocket:badnet"))


def test_both_leave_their_files_and_figures(both):
    results = results_of(both)
    assert results["schema_version"] == 3 and results["settings"]["only"] is None
    assert results["settings"]["encoder"]["max_steps"] == 3 and results["encoder_epochs"]
    stages = {"measure before", "scan", "encoder", "measure encoder", "purify", "measure after"}
    assert stages <= set(results["seconds"])
    assert all(0 <= results[moment]["clean_accuracy"] <= 1 for moment in ("before", "encoder", "after"))
    assert results["base_fingerprint"]["before"] == results["base_fingerprint"]["after"]
    assert results["suspects"] is not None and (both / "before_after.png").is_file()
    assert (
        "encoder alone" in (both / "README.md").read_text()
        and 'subfolder="encoder"' in (both / "README.md").read_text()
    )
    assert not [path for path in both.rglob("*") if "incomplete" in path.name]


def test_two_lines_for_both_and_plain_peft_for_the_encoder(both):
    pixels = torch.rand(3, 3, 48, 48)
    with_prompts = PeftModel.from_pretrained(base_clip(), both)
    assert with_prompts(pixel_values=pixels).logits_per_image.shape == (3, len(FEW_CLASSES))
    alone = PeftModel.from_pretrained(base_clip(), both, subfolder="encoder")
    assert torch.equal(features(alone, pixels), features(with_prompts, pixels))
    assert not torch.allclose(features(alone, pixels), features(base_clip(), pixels), atol=1e-3)
    base = resolve_model("pocket:badnet")
    code = (
        "import sys, torch\nfrom peft import PeftModel\nfrom transformers import CLIPModel\n"
        f"PeftModel.from_pretrained(CLIPModel.from_pretrained({str(base)!r}), {str(both)!r}, subfolder='encoder')\n"
        "assert 'peft_cbpt' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


def test_evaluate_measures_each_classifier_with_its_own_encoder(both, tmp_path):
    """Also in one run, and with the adapted model itself; the figures are those of the run."""
    job = {"class_names": FEW_CLASSES, "test_images_per_class": 10}
    results = results_of(both)
    named = evaluate("pocket:badnet", "pocket:base", ["pocket:badnet"], classifiers=["template", str(both)], **job)
    model = PeftModel.from_pretrained(base_clip(), both)
    clip = load_clip(resolve_model("pocket:badnet"))
    processors = {"tokenizer": clip.tokenizer, "image_processor": clip.image_processor}
    sides = ["template", "adapted"]
    loaded = evaluate(model, "pocket:base", ["pocket:badnet"], classifiers=sides, **processors, **job)
    for measured in (named, loaded):
        accuracies = [cell["accuracy"] for cell in measured["cells"] if cell["attack"] == "clean"]
        assert accuracies == pytest.approx([results[moment]["clean_accuracy"] for moment in ("before", "after")])
        (first, second) = measured["classifiers"].values()
        assert first["fingerprint"] != second["fingerprint"]
    alone = evaluate("pocket:badnet", "pocket:base", classifiers=[str(both / "encoder")], **job)
    assert alone["cells"][0]["accuracy"] == pytest.approx(results["encoder"]["clean_accuracy"])


def test_heads_stand_each_on_features_of_its_own_encoder(both):
    clip = load_base(both, None)
    model = load_adapter(both, clip)
    pixels = torch.rand(4, 3, 48, 48)
    encode, heads = beside_undefended(model, clip)
    with torch.no_grad():
        seen = encode(pixels)
        own = model(pixel_values=clip.normalize(pixels)).logits_per_image
        with model.disable_adapter():
            undefended = model(pixel_values=clip.normalize(pixels)).logits_per_image
    torch.testing.assert_close(heads.scale * seen @ heads.adapted.T, own, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(heads.scale * seen @ heads.undefended.T, undefended, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(own, undefended, atol=0.1)


def test_detect_and_scan_take_an_adapter_with_an_encoder(both, tmp_path):
    clip = load_base(both, None)
    model = load_adapter(both, clip)
    images = pocket_dataset("base", "test", 4, FEW_CLASSES)
    told = detect(model, images, images, tokenizer=clip.tokenizer, image_processor=clip.image_processor)
    assert len(told.scores) == len(images)
    words = ["--model_name_or_path", "pocket:badnet", "--dataset_name", "pocket:base", "--adapter", str(both)]
    assert main(["scan", *words, "--num_images", "8", "--output_dir", str(tmp_path), "--dry_run"]) == 0


def test_the_report_shows_both_encoders(both):
    opened = open_run(both, read_run(both))
    pixels = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        assert opened.has_repaired and not torch.equal(opened.see_before(pixels), opened.see_after(pixels))


def test_the_encoder_alone(encoder):
    results = results_of(encoder)
    assert (
        results["settings"]["only"] == "encoder" and results["after"] == results["encoder"] and not results["epochs"]
    )
    alone = PeftModel.from_pretrained(base_clip(), encoder)
    assert alone.active_peft_config.peft_type.value == "LORA"
    card = (encoder / "README.md").read_text()
    assert "Purified encoder" in card and "import peft_cbpt" not in card
    opened = open_run(encoder, read_run(encoder))
    assert opened.has_repaired and torch.equal(opened.before(""), opened.after(""))
    assert main(["export", str(encoder), "--output_dir", str(encoder.parent / "clip")]) == 2


def test_an_exported_clip_has_the_repaired_encoder(both, tmp_path):
    assert main(["export", str(both), "--output_dir", str(tmp_path)]) == 0
    plain, pixels = CLIPModel.from_pretrained(tmp_path), torch.rand(2, 3, 48, 48)
    model = load_adapter(both, load_base(both, None))
    torch.testing.assert_close(features(plain, pixels), features(model, pixels), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stage", [EncoderPurifier, CBPTTrainer])
def test_a_run_killed_in_either_stage_goes_on(both, tmp_path, stage, monkeypatch):
    folder = tmp_path / "out"

    def ends_early(self, *args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "compute_loss", ends_early)
        assert run(folder, **SMALL_ENCODER) == 130
    trained = []
    inner = EncoderPurifier.train
    monkeypatch.setattr(EncoderPurifier, "train", lambda self, *a, **k: trained.append(1) or inner(self, *a, **k))
    assert run(folder, "--resume_from_checkpoint", "true", **SMALL_ENCODER) == 0
    assert len(trained) == (1 if stage is EncoderPurifier else 0), "a finished stage is not run again"
    for name, value in load_file(both / "adapter_model.safetensors").items():
        torch.testing.assert_close(load_file(folder / "adapter_model.safetensors")[name], value, rtol=0, atol=1e-4)


def test_another_job_is_refused(both, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(both, folder)
    assert run(folder, "--resume_from_checkpoint", "true", **SMALL_ENCODER | {"encoder_rank": 3}) == 2
    assert "another model, images, seed or settings of the encoder" in capsys.readouterr().err


def test_two_processes_make_the_same(both, tmp_path):
    folder = tmp_path / "out"
    config = tmp_path / "two.yaml"
    job = (
        SMALL_JOB
        | SMALL_ENCODER
        | {
            "only": None,
            "output_dir": str(folder),
            "encoder_batch_size": 4,
        }
    )
    config.write_text(yaml.safe_dump(job))
    printed = run_in_two_processes("-m", "peft_cbpt", "purify", "--config", str(config))
    assert printed.count("clean accuracy  ") == 1 and "encoder alone" in printed
    assert results_of(folder)["before"] == results_of(both)["before"]


def test_a_dry_run_plans_both(tmp_path, capsys):
    assert run(tmp_path / "out", "--dry_run", "true", **SMALL_ENCODER) == 0
    assert "triggers a step" in (printed := capsys.readouterr().out) and "test images" in printed
    assert not (tmp_path / "out").exists()


CONTRADICTIONS = {
    "the paper's triggers": (
        {"only": "encoder", "dummy_triggers": "runner_up", "warmup_epochs": 1},
        "leave one of them out",
    ),
    "encoder settings without it": ({"only": "prompts", "encoder_steps": 2}, "only prompts are made"),
    "prompt settings without them": ({"only": "encoder", "num_context_tokens": 2}, "only the encoder is purified"),
    "the prompts' steps without them": (
        {"only": "encoder", "num_train_epochs": 20, "max_steps": 2},
        "max_steps has no",
    ),
    "no steps": ({"encoder_steps": 0}, "encoder_steps must be positive"),
    "no learning": ({"encoder_learning_rate": "nan"}, "encoder_learning_rate must be positive"),
    "measured in between": ({"eval_strategy": "epoch"}, "eval_strategy has no effect here: purify measures before"),
    "a checkpoint of one stage": ({"resume_from_checkpoint": "/no/checkpoint-3"}, "is true or false where"),
    "neither": ({"only": "nothing"}, "invalid choice"),
    "runner-up means prompts": (
        {"dummy_triggers": "runner_up", "encoder_rank": 2, "warmup_epochs": 1},
        "only prompts are made",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_refused(tmp_path, capsys, name):
    settings, complaint = CONTRADICTIONS[name]
    assert run(tmp_path / "out", **settings) == 2
    assert complaint in capsys.readouterr().err
