"""What a push sends, what it refuses, and what it says when the Hub fails."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, constants, parse_eval_result_entries
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file

from peft_cbpt.cli import main
from peft_cbpt.common.errors import HubError, InputError
from peft_cbpt.hub.push import push_adapter
from peft_cbpt.hub.sharing import shareable, without_local_paths
from peft_cbpt.pocket.model import resolve_model
from tests.hub.conftest import BASE_ID, JOB
from tests.hub.loopback import READER_TOKEN, STRANGER_TOKEN, Fault


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def commits(hub) -> int:
    return sum("/commit/" in request for request in hub.requests)


def test_one_commit_has_everything(hub, adapter):
    (adapter / "report").mkdir()
    (adapter / "report" / "index.html").write_text("<h1>report</h1>")
    (adapter / "notes.txt").write_text("private")
    edit_json(adapter / "results.json", settings={"test_split": "test", "dataset_name": "lab/pictures"})
    commit = push_adapter(adapter, "ada/purified")
    assert commits(hub) == 1 and commit.oid == hub.repositories["ada/purified"].resolve("main")
    files = hub.files("ada/purified")
    assert set(files) == {
        ".gitattributes", "adapter_config.json", "adapter_model.safetensors", "README.md", "results.json",
        "before_after.png", "report/index.html", ".eval_results/lab__pictures.yaml",
    }  # fmt: skip
    assert files["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE_ID
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/lab__pictures.yaml"]))
    clean = json.loads(files["results.json"])["after"]["clean_accuracy"]
    assert entry.dataset_id == "lab/pictures" and entry.value == pytest.approx(100 * clean, abs=0.01)
    assert "- lab/pictures" in files["README.md"].decode()


def test_pushing_again_changes_nothing_and_a_change_makes_a_commit(hub, adapter):
    first = push_adapter(adapter, "purified")
    again = push_adapter(adapter, "ada/purified", tag="v1")
    assert first.oid == again.oid and commits(hub) == 1 and hub.repositories["ada/purified"].tags == {"v1": first.oid}
    push_adapter(adapter, "ada/purified", tag="v1")
    edit_json(adapter / "results.json", seed=7)
    assert push_adapter(adapter, "ada/purified").oid != first.oid and commits(hub) == 2
    edit_json(adapter / "results.json", seed=8)
    with pytest.raises(InputError, match="the tag v1 of ada.purified marks another commit"):
        push_adapter(adapter, "ada/purified", tag="v1")


def test_branches_are_made_and_reused(hub, adapter):
    push_adapter(adapter, "lab/purified", revision="next")
    assert "README.md" in hub.files("lab/purified", "next") and "README.md" not in hub.files("lab/purified")
    edit_json(adapter / "results.json", seed=7)
    push_adapter(adapter, "lab/purified", revision="next")
    assert commits(hub) == 2


def test_private_repositories(hub, adapter):
    push_adapter(adapter, "ada/secret", private=True)
    assert hub.repositories["ada/secret"].private
    push_adapter(adapter, "ada/secret", private=True)
    push_adapter(adapter, "ada/open")
    edit_json(adapter / "results.json", seed=7)
    with pytest.raises(InputError, match="exists and is public"):
        push_adapter(adapter, "ada/open", private=True)
    assert commits(hub) == 2


def test_a_card_of_ones_own_is_kept(hub, adapter):
    (adapter / "README.md").write_text("---\nlibrary_name: peft\n---\nMine.\n")
    push_adapter(adapter, "ada/purified")
    assert hub.files("ada/purified")["README.md"].decode().endswith("Mine.\n")


def test_the_generic_card_of_peft_is_replaced(hub, adapter):
    (adapter / "README.md").write_text(f"---\nbase_model: {adapter}\n---\n\n# Model Card for Model ID\n")
    push_adapter(adapter, "ada/purified")
    assert "# purified\n" in hub.files("ada/purified")["README.md"].decode()


def test_the_command_pushes_and_says_where(hub, adapter, capsys):
    assert main(["push", str(adapter), "--hub_model_id", "ada/purified", "--tag", "v1", "--private"]) == 0
    assert f"pushed: {hub.endpoint}/ada/purified/commit/" in capsys.readouterr().out
    assert hub.repositories["ada/purified"].private and "v1" in hub.repositories["ada/purified"].tags


FAULTS = {
    "503 in the middle of the commit": (Fault("POST .*/commit/", 503), "the Hub answered 503"),
    "connection lost in the commit": (Fault("POST .*/commit/", drop=True), "the push to ada/purified failed"),
    "500 at creation": (Fault("POST /api/repos/create", 500), "the Hub answered 500"),
    "403 at the commit": (Fault("POST .*/commit/", 403), "use one with write access"),
    "404 at the preupload": (Fault("POST .*/preupload/", 404), "no such repository or revision"),
    "401 at the commit": (Fault("POST .*/commit/", 401), "the token"),
    "tag fails": (Fault("POST .*/tag/", 502), "the Hub answered 502"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_failed_push_keeps_everything_and_says_how_to_try_again(hub, adapter, capsys, case):
    fault, message = FAULTS[case]
    hub.faults.append(fault)
    before = {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()}
    command = ["push", str(adapter), "--hub_model_id", "ada/purified", "--tag", "v1"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and message in error
    assert error.rstrip().endswith("try again with: peft-cbpt " + " ".join(command))
    after = {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()}
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in before.keys() - {"README.md"})
    assert main(command) == 0
    assert commits(hub) <= 2 and "v1" in hub.repositories["ada/purified"].tags


def test_a_passing_fault_and_slow_answers_are_sat_out(hub, adapter):
    hub.faults += [Fault("POST .*/preupload/", 503), Fault("POST .*", seconds=0.3, times=20)]
    push_adapter(adapter, "ada/purified")
    assert commits(hub) == 1


def test_an_unreachable_hub_is_no_fault_of_the_input(hub, adapter, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot reach the Hub at http://127.0.0.1:9"):
        push_adapter(adapter, "ada/purified")


DESTINATIONS = {
    "no token": ({"HF_TOKEN": ""}, "ada/purified", "no token to push with"),
    "wrong token": ({"HF_TOKEN": "hf_" + "x" * 34}, "ada/purified", "refuses the token"),
    "token that only reads": ({"HF_TOKEN": READER_TOKEN}, "ada/purified", "may only read"),
    "somebody else's": ({"HF_TOKEN": STRANGER_TOKEN}, "ada/purified", "choose one of eve"),
    "no id": ({}, "ada/puri fied", "not a Hub id"),
    "a path": ({}, "a/b/c", "not a Hub id"),
}


@pytest.mark.parametrize("case", DESTINATIONS)
def test_a_bad_destination_is_found_before_training(hub, case, tmp_path, monkeypatch, capsys):
    environment, repo_id, message = DESTINATIONS[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = ["--push_to_hub", "--hub_model_id", repo_id, "--output_dir", str(tmp_path / "out")]
    assert main(["purify", "--model_name_or_path", "pocket:badnet", *JOB, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and message in error
    assert not list((tmp_path / "out").glob("*")) and not hub.repositories


SETTINGS = {
    "no id": ([], "push_to_hub needs hub_model_id"),
    "checkpoints": (["--hub_model_id", "ada/a", "--hub_strategy", "checkpoint"], "checkpoints are not pushed"),
    "base without a name": (["--hub_model_id", "ada/a", "--model_name_or_path", "{folder}"], "base_model_id"),
    "base that is a path": (["--base_model_id", "{folder}"], "base_model_id must be a Hub id"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_push_settings_are_found_before_training(hub, case, tmp_path, capsys):
    shutil.copytree(resolve_model("pocket:badnet"), tmp_path / "clip")
    words, message = SETTINGS[case]
    options = ["--push_to_hub", *(word.format(folder=tmp_path / "clip") for word in words)]
    job = ["purify", "--model_name_or_path", "pocket:badnet", *JOB, "--output_dir", str(tmp_path / "out"), *options]
    assert main(job) == 2
    assert message in capsys.readouterr().err


def test_offline_is_found_before_training(hub, adapter, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        push_adapter(adapter, "ada/purified")


def truncate(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def drop_a_class(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    names = ("class_names", "class_token_ids", "class_name_lengths", "template_token_ids")
    edit_json(folder / "adapter_config.json", **{name: config[name][:-1] for name in names})


def cut_the_width(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: value[:, :2].clone() for name, value in weights.items()}, folder / "adapter_model.safetensors")


def leak_in_a_report(folder):
    (folder / "report.html").write_text(f"<img src='{folder}/before_after.png'>")


FOLDERS = {
    "no folder": (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "truncated": (truncate, "damaged or incomplete"),
    "another number of classes": (drop_a_class, "has 5 contexts of 4 tokens each"),
    "another shape": (cut_the_width, "these files are of different adapters"),
    "config is no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be used"),
    "another method": (lambda folder: edit_json(folder / "adapter_config.json", peft_type="IA3"), "kind IA3"),
    "another method's config": (
        lambda folder: edit_json(folder / "adapter_config.json", peft_type="LORA"),
        "of different adapters",
    ),
    "results are no JSON": (lambda folder: (folder / "results.json").write_text("{"), "is not valid JSON"),
    "results are a list": (lambda folder: (folder / "results.json").write_text("[]"), "holds no JSON object"),
    "base by path": (
        lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path=str(folder)),
        "give its Hub id as base_model_id",
    ),
    "path in a report": (leak_in_a_report, "report.html"),
    "token in a report": (lambda folder: (folder / "r.html").write_text("hf_" + "a" * 34), "r.html"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_bad_folder_is_refused(hub, adapter, capsys, case):
    spoil, message = FOLDERS[case]
    spoil(adapter)
    assert main(["push", str(adapter), "--hub_model_id", "ada/purified"]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and message in error
    assert not hub.repositories


def test_a_base_id_can_be_given_for_an_adapter_that_knows_only_a_path(hub, adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter), tokenizer_name_or_path="/a/b")
    edit_json(adapter / "results.json", model=str(adapter), settings={"dataset_name": str(adapter / "images")})
    push_adapter(adapter, "ada/purified", base_model_id=BASE_ID)
    files = hub.files("ada/purified")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE_ID
    assert json.loads(files["results.json"])["settings"]["dataset_name"] == "images"
    assert not any(str(adapter).encode() in content for content in files.values())


def test_a_patch_that_reads_like_a_path_is_pushed_whole(hub, adapter):
    attacks = json.loads((adapter / "results.json").read_text())["attacks"]
    attacks["badnet"]["trigger"] |= {"patch": "/9j/4AAQ"}
    edit_json(adapter / "results.json", attacks=attacks)
    push_adapter(adapter, "ada/purified")
    assert json.loads(hub.files("ada/purified")["results.json"])["attacks"] == attacks


def test_pocket_models_need_no_hub_id(hub, adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="pocket:badnet")
    push_adapter(adapter, "ada/purified")
    card = hub.files("ada/purified")["README.md"].decode()
    assert "\nbase_model:" not in card and 'resolve_model("pocket:badnet")' in card


def test_paths_are_cut_to_their_last_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    given = {"a": ["/x/y", "~/z", "./w/v/", "C:\\u\\t"], "b": {"c": "data/mine", "d": "lab/mine", "e": 1, "f": None}}
    cut = {"a": ["y", "z", "v", "t"], "b": {"c": "mine", "d": "lab/mine", "e": 1, "f": None}}
    assert without_local_paths(given) == cut
    given = ["imagenet-v2:data/v2", "imagenet:/x/y", "imagenet", "pocket:base", "https://x/y"]
    assert without_local_paths(given) == ["imagenet-v2:v2", "imagenet:y", *given[2:]]


def test_sample_ids_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").touch()
    results = {"shots": ["train/1.png"], "model": "train/1.png", "settings": {"dataset_name": str(tmp_path)}}
    cut = {"shots": ["train/1.png"], "model": "1.png", "settings": {"dataset_name": tmp_path.name}}
    assert shareable(results) == cut


def test_the_loopback_refuses_what_the_hub_refuses(hub, adapter):
    push_adapter(adapter, "ada/purified", private=True)
    for token, status in ((STRANGER_TOKEN, 404), (False, 401)):
        with pytest.raises(HfHubHTTPError) as raised:
            HfApi(token=token).model_info("ada/purified")
        assert raised.value.response.status_code == status
