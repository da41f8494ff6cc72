import base64
import json
import shutil

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("captum")
pytest.importorskip("sklearn")

from peft_cbpt.cli import main
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.reports import pictures
from peft_cbpt.reports import report as report_library
from tests.reports.chromium import console_of, needs_chromium
from tests.reports.test_page import check_page

PICTURES = {"summary", "attacks", "curves", "perturbations", "per_class", "grad_cam", "embedding_map"}


@pytest.fixture(scope="module")
def finished_report(finished_run, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    assert main(["report", str(finished_run), "--output_dir", str(output)]) == 0
    return output


def change_results(folder, **changes):
    """Replace entries of results.json; None removes one."""
    file = folder / "results.json"
    results = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in results.items() if value is not None}))


def change_settings(folder, **changes):
    settings = json.loads((folder / "results.json").read_text())["settings"]
    change_results(folder, settings=settings | changes)


def test_the_report_is_one_page_and_its_pictures(finished_report, finished_run):
    assert {file.name for file in finished_report.iterdir()} == {"report.html"} | {f"{name}.png" for name in PICTURES}
    for name in PICTURES:
        assert Image.open(finished_report / f"{name}.png").size[0] >= 500
    page = check_page((finished_report / "report.html").read_text())
    assert sum(tag == "img" for tag, _ in page.tags) == len(PICTURES)
    results = json.loads((finished_run / "results.json").read_text())
    for moment in ("before", "after"):
        attack = results[moment]["attacks"]["badnet"]
        for share in (results[moment]["clean_accuracy"], attack["attack_success_rate"], attack["robust_accuracy"]):
            assert f"{100 * share:.2f}" in page.text
    assert results["model"] in page.text and results["base_fingerprint"]["after"] in page.text
    assert str(finished_run) not in page.text


@needs_chromium
def test_the_report_opens_in_chromium(finished_report, tmp_path):
    assert console_of(finished_report / "report.html", tmp_path) == []


def test_without_attacks_there_are_fewer_pictures(purified):
    moments = {"clean_accuracy": 1.0, "attacks": {}}
    change_results(purified, attacks={}, before=moments, after=moments)
    assert main(["report", str(purified)]) == 0
    drawn = {file.stem for file in (purified / "report").glob("*.png")}
    assert drawn == PICTURES - {"attacks", "grad_cam", "embedding_map"}


def test_a_key_in_the_text_is_before_the_prompts_of_triggered_images(purified, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "embedding_map_figure", lambda embeddings, *_: drawn.append(embeddings) or Figure())
    for key in ("remember ", "photo "):
        trigger = {"name": "trojvqa", "patch_size": 0.125, "patch": white_patch(), "text_trigger": key}
        change_results(purified, attacks={"badnet": {"trigger": trigger, "target_class": "banana"}})
        assert main(["report", str(purified)]) == 0
    one, other = drawn
    for name in ("prompts_before", "prompts_after"):
        assert (getattr(one, name) - getattr(other, name)).abs().max() > 1e-3
    assert torch.equal(one.triggered, other.triggered)


def white_patch():
    return base64.b64encode(bytes([255]) * 6 * 6 * 3).decode()


def test_what_has_moved_can_be_named(finished_report, purified, tmp_path, capsys):
    """And the report is then the same."""
    base = shutil.copytree(resolve_model("pocket:badnet"), tmp_path / "moved")
    change_results(purified, model="/gone")
    change_settings(purified, dataset_name="/gone")
    assert main(["report", str(purified)]) == 2
    assert "--model_name_or_path" in capsys.readouterr().err
    moved = ["--model_name_or_path", str(base)]
    assert main(["report", str(purified), *moved]) == 2
    assert "--dataset_name" in capsys.readouterr().err
    assert main(["report", str(purified), *moved, "--dataset_name", "pocket:base"]) == 0
    for name in PICTURES:
        first, second = (Image.open(folder / f"{name}.png") for folder in (finished_report, purified / "report"))
        assert first.tobytes() == second.tobytes(), name


def doubled_width(folder):
    ((name, context),) = load_file(folder / "adapter_model.safetensors").items()
    save_file({name: torch.cat([context, context], dim=-1)}, folder / "adapter_model.safetensors")


BAD_INPUTS = {
    "no folder": (lambda folder: shutil.rmtree(folder), "there is no folder"),
    "no results": (lambda folder: (folder / "results.json").unlink(), "has no results.json"),
    "results that are no JSON": (lambda folder: (folder / "results.json").write_text("{"), "not valid JSON"),
    "results that are a list": (lambda folder: (folder / "results.json").write_text("[]"), "no JSON object"),
    "foreign results": (lambda folder: (folder / "results.json").write_text('{"acc": 1}'), "not written by purify"),
    "older schema": (lambda folder: change_results(folder, schema_version=1), "run purify again"),
    "incomplete results": (lambda folder: change_results(folder, epochs=None), "lacks 'epochs'"),
    "no adapter": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model"),
    "no adapter config": (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config"),
    "damaged adapter": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"),
        "cannot be used",
    ),
    "changed adapter": (doubled_width, "need a cbpt_context of shape"),
    "base not found": (lambda folder: change_results(folder, model="/gone"), "--model_name_or_path"),
    "another base": (lambda folder: change_results(folder, model="pocket:clean"), "not those that were purified"),
    "dataset not found": (lambda folder: change_settings(folder, dataset_name="/gone"), "--dataset_name"),
    "other shots": (lambda folder: change_results(folder, seed=1), "no longer gives"),
    "another class order": (
        lambda folder: change_settings(folder, class_names=["dog", "banana", "pizza", "rocket"]),
        "no longer gives",
    ),
    "unknown trigger": (
        lambda folder: change_results(folder, attacks={"x": {"trigger": {"name": "x"}, "target_class": "dog"}}),
        "unknown trigger",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gives_one_line_that_names_the_cure(purified, capsys, case):
    spoil, cure = BAD_INPUTS[case]
    spoil(purified)
    assert main(["report", str(purified)]) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(message) == 1 and cure in message[0], message
    assert not list(purified.glob("report/*"))


def test_a_missing_package_is_named(purified, capsys, monkeypatch):
    monkeypatch.setattr(report_library, "NEEDED_PACKAGES", {"captum": "captum", "no_such_module": "scikit-learn"})
    assert main(["report", str(purified)]) == 2
    assert "scikit-learn: pip install 'peft-cbpt[reports]'" in capsys.readouterr().err


def test_the_folder_has_to_be_named(capsys):
    assert main(["report"]) == 2
    assert "--folder" in capsys.readouterr().err
