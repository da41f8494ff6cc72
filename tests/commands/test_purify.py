import base64
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel

from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.cli import main
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from tests.conftest import FEW_CLASSES
from tests.data.test_images import write_folders

SMALL = {
    "model_name_or_path": "pocket:badnet",
    "dataset_name": "pocket:base",
    "class_names": FEW_CLASSES,
    "num_shots": 4,
    "test_images_per_class": 10,
    "attacks": ["pocket:badnet"],
    "num_train_epochs": 3,
    "warmup_epochs": 1,
    "inversion_steps": 4,
    "norm": "inf",
    "inversion_step_rule": "sign",
    "inversion_lr": 2 / 255,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def run(tmp_path, capsys):
    """Run `peft-cbpt purify` on the small job with some settings changed; returns exit code and stderr."""

    def run(*options, output=tmp_path / "out", **settings):
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(SMALL | {"output_dir": str(output)} | settings))
        code = main(["purify", "--config", str(config), *options])
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the small job, run once; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(SMALL | {"output_dir": str(folder / "out"), "save_total_limit": 5}))
    assert main(["purify", "--config", str(config)]) == 0
    return folder / "out"


def last_checkpoint(folder):
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def context_of(folder):
    (context,) = load_file(folder / "adapter_model.safetensors").values()
    return context


def test_the_main_job_measures_purifies_and_leaves_its_files(run, tmp_path):
    code, errors = run()
    assert code == 0, errors
    output = tmp_path / "out"
    results = json.loads((output / "results.json").read_text())
    assert results["before"]["attacks"]["badnet"]["attack_success_rate"] >= 0.95
    assert results["base_fingerprint"]["before"] == results["base_fingerprint"]["after"]
    assert len(results["shots"]) == len(set(results["shots"])) == 4 * len(FEW_CLASSES)
    assert results["n_test_images"] == 10 * len(FEW_CLASSES) and len(results["epochs"]) == 3
    for moment in ("before", "after"):
        assert results[moment]["clean_accuracy"] > 0.8
        assert all(0 <= share <= 1 for share in results[moment]["attacks"]["badnet"].values())
    assert {"load", "measure before", "purify", "measure after"} <= results["seconds"].keys()
    assert Image.open(output / "before_after.png").size[0] > 800
    leftovers = [path.name for path in output.iterdir() if "incomplete" in path.name]
    assert not leftovers

    fresh = PeftModel.from_pretrained(CLIPModel.from_pretrained(resolve_model("pocket:badnet")), output)
    assert fresh(pixel_values=torch.rand(2, 3, 48, 48)).logits_per_image.shape == (2, len(FEW_CLASSES))


def test_options_override_the_config_file(run, tmp_path):
    code, errors = run("--num_shots", "2", "--epsilon=0.01")
    assert code == 0, errors
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["num_shots"] == 2 and settings["epsilon"] == 0.01 and settings["inversion_steps"] == 4
    assert settings["norm"] == "inf"


def test_a_resumed_run_gives_the_same_adapter(run, finished, tmp_path):
    interrupted = shutil.copytree(finished, tmp_path / "interrupted")
    shutil.rmtree(last_checkpoint(interrupted))
    for name in ("adapter_model.safetensors", "results.json"):
        (interrupted / name).unlink()
    code, errors = run("--resume_from_checkpoint", "true", output=interrupted, save_total_limit=5)
    assert code == 0, errors
    assert torch.equal(context_of(interrupted), context_of(finished))


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_shots": 3}, {"epsilon": 0.1}, {"num_context_tokens": 2}])
def test_a_checkpoint_of_another_job_is_refused(run, finished, tmp_path, change):
    shutil.copytree(finished, tmp_path / "out")
    code, errors = run("--resume_from_checkpoint", "true", **change)
    assert code == 2 and "start anew" in errors


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_model.safetensors", "job.json"])
def test_a_damaged_checkpoint_is_refused(run, finished, tmp_path, name):
    checkpoint = last_checkpoint(shutil.copytree(finished, tmp_path / "out"))
    (checkpoint / name).write_bytes(b"damaged")
    code, errors = run("--resume_from_checkpoint", str(checkpoint))
    assert code == 2 and "no whole checkpoint" in errors


def test_a_new_run_takes_the_place_of_an_old_one(run, tmp_path):
    (tmp_path / "out" / "checkpoint-999").mkdir(parents=True)
    assert run()[0] == 0
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize("target", ["suspected", "runner_up"])
def test_two_processes_give_the_adapter_of_one(run, tmp_path, target):
    """To 1e-6, with the same global batch; files and table appear once, and the log covers both shares."""
    assert run(output=tmp_path / "one", per_device_train_batch_size=8, target=target)[0] == 0
    config = tmp_path / "two.yaml"
    job = {"output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 4, "target": target}
    config.write_text(yaml.safe_dump(SMALL | job))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "peft_cbpt", "purify", "--config", str(config)]
    done = subprocess.run(
        launch, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("clean accuracy  ") == 1
    torch.testing.assert_close(context_of(tmp_path / "two"), context_of(tmp_path / "one"), rtol=0, atol=1e-6)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["epochs"] for name in ("one", "two"))
    assert [epoch.get("pseudo_targets") for epoch in two] == [epoch.get("pseudo_targets") for epoch in one]
    assert [epoch["loss_bn"] for epoch in two] == pytest.approx([epoch["loss_bn"] for epoch in one], rel=1e-4)


def test_a_patch_that_reads_like_a_path_is_stored_whole(run, tmp_path):
    attack = read_attack("pocket:badnet").as_dict()
    white = base64.b64encode(bytes([255]) * 6 * 6 * 3).decode()
    assert white.startswith("/")
    attack["trigger"] = {"name": "badclip", "patch_size": 0.125, "location": "center", "patch": white}
    (tmp_path / "attack.json").write_text(json.dumps(attack))
    code, errors = run(attacks=[str(tmp_path / "attack.json")])
    assert code == 0, errors
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["attacks"]
    assert [one["trigger"]["patch"] for one in stored.values()] == [white]


def test_without_attacks_only_accuracy_is_measured(run, tmp_path):
    code, errors = run(attacks=[])
    assert code == 0, errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["before"]["attacks"] == {} and (tmp_path / "out" / "before_after.png").exists()


def test_a_folder_of_images_can_be_used(run, tmp_path):
    for split, n in (("train", 4), ("test", 3)):
        write_folders(tmp_path / "images" / split, pocket_dataset("base", split, n, FEW_CLASSES))
    code, errors = run(dataset_name=str(tmp_path / "images"))
    assert code == 0, errors


def broken_model(tmp_path):
    folder = shutil.copytree(resolve_model("pocket:badnet"), tmp_path / "broken")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    return {"model_name_or_path": str(folder)}


def not_a_clip(tmp_path):
    folder = shutil.copytree(resolve_model("pocket:badnet"), tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    return {"model_name_or_path": str(folder)}


def images(tmp_path, spoil):
    root = write_folders(tmp_path / "images" / "train", pocket_dataset("base", "train", 4, FEW_CLASSES)).parent
    write_folders(root / "test", pocket_dataset("base", "test", 2, FEW_CLASSES))
    spoil(root)
    return {"dataset_name": str(root)}


def nan_image(root):
    Image.fromarray(np.full((48, 48), np.nan, dtype=np.float32)).save(root / "train" / "dog" / "0.tiff")
    for path in (root / "train" / "dog").glob("*.png"):
        path.unlink()
    for number in range(1, 4):
        Image.new("RGB", (48, 48)).save(root / "train" / "dog" / f"{number}.png")


def empty_class(root):
    for path in (root / "train" / "dog").iterdir():
        path.unlink()


def other_test_classes(root):
    (root / "test" / "dog").rename(root / "test" / "hound")


def no_class_folders(root):
    shutil.rmtree(root)
    root.mkdir()
    Image.new("RGB", (8, 8)).save(root / "loose.png")


def broken_picture(root):
    next((root / "train" / "dog").iterdir()).write_bytes(b"no picture")


def flat_folder(tmp_path):
    return {"dataset_name": str(write_folders(tmp_path / "flat", pocket_dataset("base", "train", 4, FEW_CLASSES)))}


def attack_for_another_class(tmp_path):
    config = {"trigger": {"name": "badnet"}, "target_class": "submarine"}
    (tmp_path / "attack.json").write_text(json.dumps(config))
    return {"attacks": [str(tmp_path / "attack.json")]}


def attack_as_text(tmp_path):
    (tmp_path / "attack.json").write_text(json.dumps({"trigger": "badnet", "target_class": "banana"}))
    return {"attacks": [str(tmp_path / "attack.json")]}


def file_as_output(tmp_path):
    (tmp_path / "file").touch()
    return {"output_dir": str(tmp_path / "file" / "out")}


BAD_INPUTS = {
    "model folder missing": (lambda _: {"model_name_or_path": "/no/such/clip"}, "no folder /no/such/clip"),
    "unknown pocket model": (lambda _: {"model_name_or_path": "pocket:evil"}, "choose one of"),
    "corrupt checkpoint": (broken_model, "download or save it again"),
    "not a CLIP": (not_a_clip, "not a CLIP"),
    "dataset missing": (lambda _: {"dataset_name": "/no/such/images"}, "give a folder"),
    "unknown pocket domain": (lambda _: {"dataset_name": "pocket:moon"}, "choose one of"),
    "folder without classes": (lambda path: images(path, no_class_folders), "put the images of each class"),
    "train and test the same": (flat_folder, "training shots themselves"),
    "empty class": (lambda path: images(path, empty_class), "add images or remove it"),
    "unreadable picture": (lambda path: images(path, broken_picture), "replace or remove it"),
    "NaN pixels": (lambda path: images(path, nan_image), "not finite"),
    "test classes differ": (lambda path: images(path, other_test_classes), "class 'dog'"),
    "class name unknown": (lambda _: {"class_names": ["banana", "unicycle"]}, "'unicycle'"),
    "one class only": (lambda _: {"class_names": ["banana"]}, "at least two"),
    "duplicate class": (lambda _: {"class_names": ["banana", "dog", "banana"]}, "banana"),
    "too many classes": (lambda _: {"num_classes": 9999}, "between 2 and"),
    "no shots": (lambda _: {"num_shots": 0}, "at least 1"),
    "more shots than images": (lambda path: images(path, lambda _: None) | {"num_shots": 50}, "lower num_shots"),
    "column missing": (lambda p: images(p, lambda _: None) | {"image_column": "picture"}, "no column 'picture'"),
    "output not writable": (file_as_output, "choose another"),
    "unknown YAML key": (lambda _: {"num_shot": 4}, "unknown setting 'num_shot'"),
    "negative epsilon": (lambda _: {"epsilon": -1}, "positive budget"),
    "unknown norm": (lambda _: {"norm": 3}, "0, 1, 2 and inf"),
    "not a number": (lambda _: {"lambda_adv": float("nan")}, "not negative"),
    "more than all images": (lambda _: {"perturbed_share": 1.5}, "perturbed_share must be between 0 and 1"),
    "unknown evidence": (lambda _: {"evidence": ["hearsay"]}, "invalid choice: 'hearsay'"),
    "negative seed": (lambda _: {"seed": -1}, "between 0 and"),
    "negative learning rate": (lambda _: {"learning_rate": -1}, "must be positive"),
    "no epochs": (lambda _: {"num_train_epochs": 0}, "must be positive"),
    "no test images": (lambda _: {"test_images_per_class": 0}, "at least 1"),
    "split with a slash": (lambda _: {"dataset_split": "a/b"}, "without slashes"),
    "columns removed": (lambda _: {"remove_unused_columns": True}, "must stay false"),
    "evaluation without data": (lambda _: {"eval_strategy": "epoch"}, "eval_dataset"),
    "attack without settings": (attack_as_text, "name and settings"),
    "wrong type": (lambda _: {"num_shots": "many"}, "invalid int value"),
    "unknown positives": (lambda _: {"positives": "nearest"}, "invalid choice"),
    "no context": (lambda _: {"num_context_tokens": 0}, "at least 1"),
    "too much context": (lambda _: {"num_context_tokens": 90}, "positions"),
    "attack file missing": (lambda _: {"attacks": ["/no/attack.json"]}, "attack.json"),
    "target not among the classes": (attack_for_another_class, "choose class_names with it"),
    "checkpoint missing": (lambda _: {"resume_from_checkpoint": "/no/checkpoint-3"}, "checkpoint folder"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gives_one_line_that_names_the_cure(run, tmp_path, case):
    make, cure = BAD_INPUTS[case]
    code, errors = run(**make(tmp_path))
    message = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and cure in message[0], errors
    assert not list(tmp_path.glob("out/*")), "something was written before the input was checked"


@pytest.mark.parametrize(
    "content, cure",
    [(None, "cannot read the config"), ("a: [", "not valid YAML"), ("- a", "`name: value`")],
)
def test_bad_config_files(tmp_path, capsys, content, cure):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    assert main(["purify", "--config", str(file)]) == 2
    assert cure in capsys.readouterr().err


def test_unknown_options_and_missing_settings_are_one_line(capsys):
    assert main(["purify", "--nonsense", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    required = ["--model_name_or_path", "a", "--dataset_name", "b", "--output_dir", "c"]
    assert main(["purify", *required, "--nonsense", "1"]) == 2
    assert "unknown option '--nonsense'" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(run, monkeypatch):
    from peft_cbpt.training.cbpt_trainer import CBPTTrainer

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(CBPTTrainer, "train", interrupted)
    code, errors = run()
    assert code == 130 and "--resume_from_checkpoint true" in errors


def test_a_killed_run_leaves_whole_files_and_goes_on(run, tmp_path):
    """SIGKILL in the middle; what is there can be read, and the resumed run ends like an undisturbed one."""
    config = tmp_path / "kill.yaml"
    config.write_text(yaml.safe_dump(SMALL | {"output_dir": str(tmp_path / "killed"), "num_train_epochs": 6}))
    command = [sys.executable, "-m", "peft_cbpt", "purify", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not list((tmp_path / "killed").glob("checkpoint-*")):
            pass
    finally:
        process.kill()
        process.wait()
    for weights in (tmp_path / "killed").rglob("checkpoint-*/*.safetensors"):
        load_file(weights)
    options = {"num_train_epochs": 6}
    code, errors = run("--resume_from_checkpoint", "true", output=tmp_path / "killed", **options)
    assert code == 0, errors
    assert run(output=tmp_path / "undisturbed", **options)[0] == 0
    assert torch.equal(context_of(tmp_path / "killed"), context_of(tmp_path / "undisturbed"))
