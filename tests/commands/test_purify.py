"""`purify` is run on small jobs: what it leaves, resumes and shares among processes."""

import base64
import json
import shutil
import time

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
from tests.commands.conftest import RUNNER_UP, SMALL_JOB
from tests.conftest import FEW_CLASSES
from tests.data.test_images import write_folders
from tests.fresh import run_in_two_processes, start


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the small job, run once; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(SMALL_JOB | RUNNER_UP | {"output_dir": str(folder / "out"), "save_total_limit": 5})
    )
    assert main(["purify", "--config", str(config)]) == 0
    return folder / "out"


def last_checkpoint(folder):
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def context_of(folder):
    (context,) = load_file(folder / "adapter_model.safetensors").values()
    return context


def test_the_main_job_measures_purifies_and_leaves_its_files(run_purify, pictures, tmp_path):
    code, errors = run_purify()
    assert code == 0, errors
    output = tmp_path / "out"
    results = json.loads((output / "results.json").read_text())
    assert results["before"]["attacks"]["badnet"]["attack_success_rate"] >= 0.95
    assert results["base_fingerprint"]["before"] == results["base_fingerprint"]["after"]
    assert len(results["shots"]) == len(set(results["shots"])) == 4 * len(FEW_CLASSES)
    assert results["n_test_images"] == 10 * len(FEW_CLASSES) and len(results["epochs"]) == 3
    assert sum(epoch.get("inversions", 0) for epoch in results["epochs"]) > 0, "the inner loop is not reached"
    for moment in ("before", "after"):
        assert results[moment]["clean_accuracy"] > 0.8
        assert all(0 <= share <= 1 for share in results[moment]["attacks"]["badnet"].values())
    assert {"load", "measure before", "purify", "measure after"} <= results["seconds"].keys()
    assert Image.open(output / "before_after.png").size[0] > 800
    leftovers = [path.name for path in output.iterdir() if "incomplete" in path.name]
    assert not leftovers

    fresh = PeftModel.from_pretrained(CLIPModel.from_pretrained(resolve_model("pocket:badnet")), output)
    assert fresh(pixel_values=torch.rand(2, 3, 48, 48)).logits_per_image.shape == (2, len(FEW_CLASSES))


def test_options_override_the_config_file(run_purify, tmp_path):
    code, errors = run_purify("--num_shots", "2", "--epsilon=0.01")
    assert code == 0, errors
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["num_shots"] == 2 and settings["epsilon"] == 0.01 and settings["inversion_steps"] == 4
    assert settings["norm"] == "inf"


def test_a_resumed_run_gives_the_same_adapter(run_purify, finished, tmp_path):
    interrupted = shutil.copytree(finished, tmp_path / "interrupted")
    shutil.rmtree(last_checkpoint(interrupted))
    for name in ("adapter_model.safetensors", "results.json"):
        (interrupted / name).unlink()
    code, errors = run_purify("--resume_from_checkpoint", "true", output=interrupted, save_total_limit=5)
    assert code == 0, errors
    torch.testing.assert_close(context_of(interrupted), context_of(finished), rtol=0, atol=1e-6)


OTHER_JOBS = {
    "seed": 1,
    "num_shots": 3,
    "epsilon": 0.1,
    "learning_rate": 0.01,
    "num_context_tokens": 2,
    "class_token_position": "front",
}


@pytest.mark.parametrize("change", OTHER_JOBS)
def test_a_checkpoint_of_another_job_is_refused(run_purify, finished, tmp_path, change):
    shutil.copytree(finished, tmp_path / "out")
    code, errors = run_purify("--resume_from_checkpoint", "true", **{change: OTHER_JOBS[change]})
    assert code == 2 and "start anew" in errors


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_model.safetensors", "job.json"])
def test_a_damaged_checkpoint_is_refused(run_purify, finished, tmp_path, name):
    checkpoint = last_checkpoint(shutil.copytree(finished, tmp_path / "out"))
    (checkpoint / name).write_bytes(b"damaged")
    code, errors = run_purify("--resume_from_checkpoint", str(checkpoint))
    assert code == 2 and "no whole checkpoint" in errors


def test_a_new_run_takes_the_place_of_the_same_one_only(run_purify, finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "out")
    last_checkpoint(output).rename(output / "checkpoint-999")
    assert run_purify()[0] == 0
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-3"]
    foreign = output / "checkpoint-7"
    foreign.mkdir()
    for change in ({}, {"seed": 1}):
        code, errors = run_purify(**change)
        assert code == 2 and "--resume_from_checkpoint true" in errors and "--overwrite_output_dir" in errors
        assert foreign.is_dir()
    assert run_purify("--overwrite_output_dir")[0] == 0
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-3"]


WHOLE, HALF = {"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 4}
UNIVERSAL = {"dummy_triggers": "universal"}
LOOPS = {
    "features": (UNIVERSAL, {}, {}),
    "prompts": (UNIVERSAL | {"outer_solver": "prompts", "warmup_epochs": 1}, WHOLE, HALF),
    "runner_up": (RUNNER_UP, WHOLE, HALF),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_two_processes_give_the_adapter_of_one(run_purify, tmp_path, loop):
    """To 1e-4, with the same global batch; files and table appear once, and the log covers both shares."""
    inner, whole, half = LOOPS[loop]
    assert run_purify(output=tmp_path / "one", **inner | whole)[0] == 0
    config = tmp_path / "two.yaml"
    job = {"output_dir": str(tmp_path / "two"), **inner, **half}
    config.write_text(yaml.safe_dump(SMALL_JOB | job))
    printed = run_in_two_processes("-m", "peft_cbpt", "purify", "--config", str(config))
    assert printed.count("clean accuracy  ") == 1
    torch.testing.assert_close(context_of(tmp_path / "two"), context_of(tmp_path / "one"), rtol=0, atol=1e-4)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["epochs"] for name in ("one", "two"))
    assert [epoch.get("pseudo_targets") for epoch in two] == [epoch.get("pseudo_targets") for epoch in one]
    assert [epoch["loss_bn"] for epoch in two] == pytest.approx([epoch["loss_bn"] for epoch in one], rel=1e-4)


def test_a_patch_that_reads_like_a_path_is_stored_whole(run_purify, tmp_path):
    attack = read_attack("pocket:badnet").as_dict()
    white = base64.b64encode(bytes([255]) * 6 * 6 * 3).decode()
    assert white.startswith("/")
    attack["trigger"] = {"name": "badclip", "patch_size": 0.125, "location": "center", "patch": white}
    (tmp_path / "attack.json").write_text(json.dumps(attack))
    code, errors = run_purify(attacks=[str(tmp_path / "attack.json")])
    assert code == 0, errors
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["attacks"]
    assert [one["trigger"]["patch"] for one in stored.values()] == [white]


def test_without_attacks_only_accuracy_is_measured(run_purify, pictures, tmp_path):
    code, errors = run_purify(attacks=[])
    assert code == 0, errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["before"]["attacks"] == {} and Image.open(tmp_path / "out" / "before_after.png").size[0] > 800


def test_a_folder_of_images_can_be_used(run_purify, tmp_path):
    for split, n in (("train", 4), ("test", 3)):
        write_folders(tmp_path / "images" / split, pocket_dataset("base", split, n, FEW_CLASSES))
    code, errors = run_purify(dataset_name=str(tmp_path / "images"))
    assert code == 0, errors


def test_an_interrupted_run_says_how_to_go_on(run_purify, monkeypatch):
    from peft_cbpt.training.cbpt_trainer import CBPTTrainer

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(CBPTTrainer, "train", interrupted)
    code, errors = run_purify()
    assert code == 130 and "--resume_from_checkpoint true" in errors


def test_a_killed_run_leaves_whole_files_and_goes_on(run_purify, tmp_path):
    """SIGKILL in the middle; what is there can be read, and the resumed run ends like an undisturbed one."""
    config = tmp_path / "kill.yaml"
    config.write_text(
        yaml.safe_dump(SMALL_JOB | RUNNER_UP | {"output_dir": str(tmp_path / "killed"), "num_train_epochs": 6})
    )
    process = start(["-m", "peft_cbpt", "purify", "--config", str(config)], tmp_path / "printed")
    try:
        while process.is_alive() and not list((tmp_path / "killed").glob("checkpoint-*")):
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    for weights in (tmp_path / "killed").rglob("checkpoint-*/*.safetensors"):
        load_file(weights)
    options = {"num_train_epochs": 6}
    code, errors = run_purify("--resume_from_checkpoint", "true", output=tmp_path / "killed", **options)
    assert code == 0, errors
    assert run_purify(output=tmp_path / "undisturbed", **options)[0] == 0
    killed, undisturbed = context_of(tmp_path / "killed"), context_of(tmp_path / "undisturbed")
    torch.testing.assert_close(killed, undisturbed, rtol=0, atol=1e-6)
