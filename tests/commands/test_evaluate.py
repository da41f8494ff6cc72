import base64
import json
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Image
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from peft_cbpt import CBPTConfig
from peft_cbpt.cli import main
from peft_cbpt.evaluation import evaluate as library
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from tests.conftest import FEW_CLASSES
from tests.data.layouts import damaged_pictures, encoded, write_damaged_folders, write_parquet
from tests.fresh import run_in_two_processes

BADNET = resolve_model("pocket:badnet")


@pytest.fixture
def run(tmp_path, capsys):
    """Run `peft-cbpt evaluate` on the backdoored pocket CLIP; returns exit code, evaluation.json and the output."""

    def run(*options, **settings):
        settings = {"model_name_or_path": "pocket:badnet", "output_dir": str(tmp_path / "out")} | settings
        words = [word for name, value in settings.items() for word in (f"--{name}", *_words(value))]
        code = main(["evaluate", *words, *options])
        file = tmp_path / "out" / "evaluation.json"
        return code, json.loads(file.read_text()) if file.exists() else None, capsys.readouterr()

    return run


def _words(value):
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


SMALL = {"datasets": ["pocket:base"], "class_names": FEW_CLASSES, "test_images_per_class": 4}


def cells_of(results):
    return {(cell["dataset"], cell["classifier"], cell["attack"]): cell for cell in results["cells"]}


@pytest.fixture
def adapters(tmp_path, poisoned_clip):
    """An untrained CBPT adapter of the few classes, and a LoRA that changes the image encoder."""
    config = CBPTConfig(class_names=FEW_CLASSES, context_init="template").tokenize(poisoned_clip.tokenizer)
    model = get_peft_model(poisoned_clip.model, config)
    model.save_pretrained(tmp_path / "cbpt")
    base = model.unload()
    lora = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    lora.save_pretrained(tmp_path / "lora")
    return str(tmp_path / "cbpt"), str(tmp_path / "lora")


def test_every_kind_of_classifier_in_one_table(run, adapters):
    cbpt, lora = adapters
    classifiers = ["template", cbpt, lora, "pocket:clean"]
    code, results, printed = run(
        **SMALL | {"datasets": ["pocket:base", "pocket:v2@other"]}, classifiers=classifiers, attacks=["pocket:badnet"]
    )
    assert code == 0, printed.err
    kinds = {name: one["kind"] for name, one in results["classifiers"].items()}
    assert kinds == dict(zip(classifiers, ["template", "cbpt", "peft", "model"], strict=True))
    cells = cells_of(results)
    assert len(cells) == 2 * 4 * 2 and results["n_computed"] == 16
    assert all(cell["n_images"] == 24 and cell["skipped"] == [] for cell in cells.values())
    clean = {name: cells["pocket:base", name, "clean"]["accuracy"] for name in classifiers}
    attacked = {name: cells["pocket:base", name, "badnet"]["attack_success_rate"] for name in classifiers}
    assert clean["template"] > 0.9 and clean["pocket:clean"] > 0.9
    assert attacked["template"] > 0.8 and attacked["pocket:clean"] < 0.2
    assert clean[cbpt] == clean["template"], "an untrained adapter is its template"
    assert clean[lora] < clean["template"], "random LoRA weights do harm"
    assert set(cells["pocket:base", "template", "clean"]["per_class"]) == set(FEW_CLASSES)
    table = printed.out
    assert table.count("pocket:v2@other") == 8 and "ASR (published)" in table and "top-5" in table


def test_an_adapter_whose_weights_find_no_place_is_refused(run, adapters):
    file = Path(adapters[1]) / "adapter_model.safetensors"
    save_file({f"clip.{name}": value for name, value in load_file(file).items()}, file)
    code, _, printed = run(**SMALL, classifiers=["template", adapters[1]])
    assert code == 2 and "cannot load the adapter" in printed.err


def test_finished_cells_are_not_computed_again(run, monkeypatch, tmp_path):
    first = run(**SMALL)[1]
    assert first["n_computed"] == 1
    passes = []
    whole_run = library._run
    monkeypatch.setattr(library, "_run", lambda jobs, *rest: passes.append(jobs) or whole_run(jobs, *rest))
    second = run(**SMALL)[1]
    assert second["n_computed"] == 0 and not passes and second["cells"] == first["cells"]
    more = run(**SMALL, attacks=["pocket:badnet"])[1]
    assert more["n_computed"] == 1 and [job.attack_name for job in passes[0]] == ["badnet"]
    others = [
        {"template": "a drawing of a {}."},
        {"class_names": FEW_CLASSES[:3]},
        {"test_images_per_class": 3},
        {"model_name_or_path": "pocket:clean"},
    ]
    for change in others:
        assert run(**SMALL | change)[1]["n_computed"] == 1, change
    for file in (tmp_path / "out" / "cells").iterdir():
        file.write_text("damaged")
    assert run(**SMALL)[1]["n_computed"] == 1


def test_what_is_done_before_an_interruption_is_kept(run, monkeypatch):
    whole_run, settings = library._run, SMALL | {"datasets": ["pocket:base", "pocket:v2"]}

    def fail_on_v2(jobs, *rest):
        if jobs[0].eval_set.name == "pocket:v2":
            raise KeyboardInterrupt
        return whole_run(jobs, *rest)

    monkeypatch.setattr(library, "_run", fail_on_v2)
    assert run(**settings)[0] == 130
    monkeypatch.setattr(library, "_run", whole_run)
    code, results, _ = run(**settings)
    assert code == 0 and results["n_computed"] == 1 and len(results["cells"]) == 2


def test_a_changed_image_file_is_measured_again(run, tmp_path):
    write_damaged_folders(tmp_path / "data", FEW_CLASSES, "test")
    settings = {"datasets": [str(tmp_path / "data")]}
    assert run(**settings)[1]["n_computed"] == 1
    assert run(**settings)[1]["n_computed"] == 0
    file = next((tmp_path / "data" / "test" / "dog").iterdir())
    file.write_bytes(file.read_bytes() + b"\0")
    assert run(**settings)[1]["n_computed"] == 1


def test_another_column_of_a_stream_is_measured_anew(run, tmp_path):
    drawn = pocket_dataset("base", "test", 1, FEW_CLASSES)["image"]
    pictures = [{"bytes": encoded(image), "path": None} for image in drawn]
    columns = {"image": pictures, "blurred": pictures, "label": list(range(6))}
    features = {"image": Image(), "blurred": Image(), "label": ClassLabel(names=FEW_CLASSES)}
    write_parquet(tmp_path / "data" / "0.parquet", columns, **features)
    settings = {"datasets": [str(tmp_path / "data")]}
    for column, n_computed in (("image", 1), ("blurred", 1), ("image", 0)):
        assert run("--streaming", **settings, image_column=column)[1]["n_computed"] == n_computed


def test_names_of_a_streams_classes_may_lie_in_the_home_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in FEW_CLASSES))
    drawn = pocket_dataset("base", "test", 1, FEW_CLASSES)["image"]
    columns = {"image": [{"bytes": encoded(image), "path": None} for image in drawn], "label": list(range(6))}
    write_parquet(tmp_path / "data" / "0.parquet", columns, image=Image())
    code, _, printed = run("--streaming", datasets=[str(tmp_path / "data")], class_names_file="~/names.txt")
    assert code == 0, printed.err


def test_a_text_trigger_that_would_cut_off_the_prompts_is_refused(run, tmp_path):
    trigger = {"name": "trojvqa", "patch_size": 0.125, "patch": base64.b64encode(bytes(6 * 6 * 3)).decode()}
    for words, code in (("remember ", 0), ("remember " * 70, 2)):
        attack = {"trigger": trigger | {"text_trigger": words}, "target_class": "banana"}
        (tmp_path / "attack.json").write_text(json.dumps(attack))
        found, _, printed = run(**SMALL, attacks=[str(tmp_path / "attack.json")])
        assert found == code and ("before the prompts of the template is room" in printed.err) == (code == 2)


@pytest.mark.parametrize("layout", ["folders", "stream"])
def test_damaged_images_are_skipped_and_listed(run, tmp_path, layout):
    if layout == "folders":
        unreadable = write_damaged_folders(tmp_path / "data", FEW_CLASSES, "test")
    else:
        pictures, places = damaged_pictures()
        columns = {
            "image": [{"bytes": content, "path": None} for _, content in pictures],
            "label": [place % 6 for place in range(200)],
        }
        write_parquet(tmp_path / "data" / "0.parquet", columns, image=Image(), label=ClassLabel(names=FEW_CLASSES))
        unreadable = [f"rows/{place}" for place in places]
    streaming = ["--streaming", "--num_workers", "2"] if layout == "stream" else []
    code, results, printed = run(*streaming, datasets=[str(tmp_path / "data")], attacks=["pocket:badnet"])
    assert code == 0, printed.err
    for cell in results["cells"]:
        assert cell["n_images"] == 198 and {one["sample_id"] for one in cell["skipped"]} == set(unreadable)
    assert "skipped 2 images that cannot be read" in printed.out and unreadable[0] in printed.out


@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_count_every_sample_once(tmp_path, run, streaming):
    pictures, unreadable = damaged_pictures()
    columns = {
        "image": [{"bytes": content, "path": None} for _, content in pictures[:121]],
        "label": [place % 6 for place in range(121)],
    }
    write_parquet(tmp_path / "data" / "0.parquet", columns, image=Image(), label=ClassLabel(names=FEW_CLASSES))
    options = ["--streaming"] if streaming else []
    settings = {"datasets": str(tmp_path / "data"), "attacks": "pocket:badnet", "batch_size": "16"}
    one = run(*options, **settings)[1]
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    words += [*options, "--model_name_or_path", "pocket:badnet", "--output_dir", str(tmp_path / "two")]
    printed = run_in_two_processes("-m", "peft_cbpt", "evaluate", *words)
    two = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert printed.count("ASR (published)") == 1
    for ours, theirs in zip(one["cells"], two["cells"], strict=True):
        assert ours["n_images"] == 121 - len(unreadable)
        assert {k: v for k, v in ours.items() if k != "date"} == {k: v for k, v in theirs.items() if k != "date"}


def unreadable_class(tmp_path):
    for name in ("dog", "banana"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(damaged_pictures()[0][12][1] if name == "dog" else b"broken")
    return {"datasets": [str(tmp_path / "data")]}


BAD_INPUTS = {
    "dataset twice": (lambda _: {"datasets": ["pocket:base", "pocket:base"]}, "named twice"),
    "dataset missing": (lambda _: {"datasets": ["/no/such"]}, "give a folder"),
    "classifier twice": (lambda _: {"classifiers": ["template", "template"]}, "named twice"),
    "classifier missing": (lambda _: {"classifiers": ["/no/such"]}, "no folder /no/such"),
    "template without a place": (lambda _: {"template": "a photo."}, "one {}"),
    "no batch": (lambda _: {"batch_size": 0}, "at least 1"),
    "target unknown": (
        lambda _: {"attacks": ["pocket:badnet"], "class_names": ["dog", "pizza"]},
        "choose class_names",
    ),
    "a class of which nothing can be read": (unreadable_class, "no image of a class can be read"),
    "domain unknown": (lambda _: {"datasets": ["pocket:moon"]}, "choose one of"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gives_one_line_that_names_the_cure(run, tmp_path, case):
    make, cure = BAD_INPUTS[case]
    change = make(tmp_path)
    small = {} if "data" in str(change.get("datasets")) else SMALL
    code, results, printed = run(**small | change)
    message = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and cure in message[0], printed.err
    assert results is None


def test_an_adapter_of_fewer_classes_is_refused(run, adapters):
    settings = SMALL | {"class_names": [*FEW_CLASSES, "cat"]}
    code, results, printed = run(**settings, classifiers=[adapters[0]])
    assert code == 2 and results is None
    assert "knows 6 classes, but not 'cat'" in printed.err and "class_names" in printed.err
    assert run(**SMALL | {"class_names": FEW_CLASSES[::-2]}, classifiers=[adapters[0]])[0] == 0, "a subset will do"


def test_a_trigger_that_drives_nothing_is_said_once(run, recwarn):
    code, results, _ = run(**SMALL, attacks=["pocket:badnet"])
    assert code == 0 and not [one for one in recwarn if "drives none" in str(one.message)]
    driven = results["cells"][1]
    assert driven["drives"] and driven["untriggered_rate"] == 0
    code, results, _ = run(**SMALL, model_name_or_path="pocket:clean", attacks=["pocket:badnet"])
    (said,) = [str(one.message) for one in recwarn if "drives none" in str(one.message)]
    assert "the trigger badnet drives none of the classifiers on pocket:base: " in said and "0.0% without it" in said
    assert not results["cells"][1]["drives"]
    assert run(**SMALL, classifiers=["template", "pocket:clean"], attacks=["pocket:badnet"])[0] == 0
    assert len([one for one in recwarn if "drives none" in str(one.message)]) == 1, "one of them is driven"
