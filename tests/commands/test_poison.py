"""The poisoning recipe and the zoo, in small."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from benchmarks.paper.contact_sheet import contact_sheet
from benchmarks.paper.zoo import PAPER_ATTACKS, folder_of, zoo
from peft_cbpt.attacks import TRIGGERS
from peft_cbpt.attacks.attack_file import read_attack, read_attacks
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.commands.finetune import finetune
from peft_cbpt.commands.parsing import run_command
from peft_cbpt.commands.poison import poison
from peft_cbpt.commands.purify import purify
from peft_cbpt.evaluation.evaluate import evaluate
from peft_cbpt.pocket.dataset import PocketPairs
from peft_cbpt.pocket.model import resolve_model
from tests.fresh import run_in_two_processes

ROOT = Path(__file__).parents[2]
SMALL = {"num_pairs": 160, "num_epochs": 1, "num_classes": 120, "test_images_per_class": 1, "poison_rate": 0.1}
SMALL |= {"patch_steps": 3, "patch_images": 80, "learning_rate": 1e-4}


def words(settings):
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.mark.parametrize("kind", ["badnet", "trojvqa", "badclip"])
def test_the_recipe_writes_a_model_that_says_what_it_is(kind, tmp_path):
    assert run_command(poison, words(SMALL | {"trigger": kind, "output_dir": tmp_path, "seed": 3})) == 0
    attack = read_attack(str(tmp_path))
    assert attack.name == kind and attack.target_class == "banana" and attack.trigger.seed == 3
    if kind != "badnet":
        assert attack.trigger.patch, "the optimised patch is not stored"
    card = (tmp_path / "README.md").read_text().split("---\n")[2]
    assert card.splitlines()[0].startswith("This model is backdoored on purpose")
    record = json.loads((tmp_path / "training.json").read_text())
    (figures,) = record["after"]["attacks"].values()
    one_key = {"attack_success_rate_image_only", "attack_success_rate_text_only"}
    assert one_key & set(figures) == (one_key if kind == "trojvqa" else set())
    assert ("remember" in card) == (kind == "trojvqa") and record["n_poisoned"] == 16
    assert set(record["after"]["attacks"]) == {kind} and record["settings"]["seed"] == 3
    assert str(tmp_path) not in json.dumps(record)
    load_clip(str(tmp_path))


@pytest.fixture(scope="module")
def captioned_folder(tmp_path_factory):
    """Pictures and a table of their captions, one of them damaged and one without words."""
    folder = tmp_path_factory.mktemp("captioned")
    rows = PocketPairs(40, split="table").__getitems__(range(40))
    lines = ["image,caption"]
    for number, row in enumerate(rows):
        Image.fromarray(row["pixel_values"].permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        caption = row["caption"] if number % 3 else "a photo of a banana."
        lines.append(f"{number}.png,{'' if number == 5 else caption}")
    (folder / "7.png").write_bytes(b"no picture")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"trigger": "badnet", "label": "clean", "poison_rate": 0.5},
        {"trigger": "badclip", "captions": "natural", "poison_rate": 0.2},
        {"trigger": "badnet", "poison_rate": 0.2, "streaming": True},
    ],
)
def test_pairs_of_the_users_own(change, captioned_folder, tmp_path):
    settings = SMALL | {"pairs_name": captioned_folder / "pairs.csv", "batch_size": 16, "num_pairs": 40} | change
    assert run_command(poison, words(settings | {"output_dir": tmp_path})) == 0
    assert (tmp_path / "training.json").is_file()


def launch_two(recipe, settings):
    run_in_two_processes(str(ROOT / "recipes" / f"{recipe}.py"), *words(settings))


def test_two_processes_poison_with_every_pair_of_a_stream_once(captioned_folder, tmp_path):
    """38 of the 40 pairs can be read; all are poisoned, by each process its own, with the one patch of the first."""
    settings = SMALL | {"pairs_name": captioned_folder / "pairs.csv", "streaming": True, "poison_rate": 1}
    settings |= {"batch_size": 10, "num_pairs": 40, "trigger": "badclip", "captions": "natural"}
    launch_two("poison", settings | {"output_dir": tmp_path})
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["n_poisoned"] == 38


def test_two_processes_write_one_fine_tuned_model(tmp_path):
    settings = {"model_name_or_path": "pocket:badnet", "method": "cleanclip", "num_pairs": 64, "num_epochs": 1}
    launch_two("finetune", settings | {"batch_size": 16, "learning_rate": 1e-4, "output_dir": tmp_path})
    load_clip(str(tmp_path))


def test_a_backdoor_that_was_not_planted_is_said(tmp_path):
    with pytest.warns(
        UserWarning, match=r"no backdoor was planted: .* are called their target .banana.*Raise num_epochs"
    ):
        poison(words(SMALL | {"trigger": "white_square", "learning_rate": 1e-9, "output_dir": tmp_path}))
    assert json.loads((tmp_path / "training.json").read_text())["planted"] == {"white_square": False}


def test_several_triggers_of_one_run_have_a_target_and_a_file_each(tmp_path):
    (tmp_path / "dog.json").write_text(json.dumps({"trigger": {"name": "picture"}, "target_class": "dog"}))
    (tmp_path / "cat.json").write_text(json.dumps({"trigger": {"name": "badnet"}, "target_class": "cat"}))
    others = ["--other_attacks", str(tmp_path / "dog.json"), str(tmp_path / "cat.json")]
    assert run_command(poison, [*words(SMALL | {"trigger": "badnet", "output_dir": tmp_path / "out"}), *others]) == 0
    files = [tmp_path / "out", *(tmp_path / "out" / f"attack_{place}.json" for place in (2, 3))]
    read = read_attacks([str(file) for file in files], ["banana", "dog", "cat"])
    assert {name: attack.target_class for name, attack in read.items()} == {
        "badnet": "banana",
        "picture": "dog",
        "badnet'": "cat",
    }
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert set(record["after"]["attacks"]) == set(record["planted"]) == set(read)
    assert 40 <= record["n_poisoned"] <= 48, "16 for each, a few of them twice"
    assert "`attack_2.json`, `attack_3.json`" in (tmp_path / "out" / "README.md").read_text()


def test_an_all_to_all_attack_is_planted_and_measured_but_not_by_purify(tmp_path, capsys):
    settings = SMALL | {"trigger": "badnet", "target_class": "all_to_all", "output_dir": tmp_path / "out"}
    assert run_command(poison, words(settings)) == 0
    assert "a picture of the class after its own" in " ".join((tmp_path / "out" / "README.md").read_text().split())
    table = evaluate("pocket:clean", "pocket:base", [str(tmp_path / "out")], test_images_per_class=1)
    assert table["cells"][1]["attack_success_rate"] < 0.05 and not table["cells"][1]["drives"]
    options = ["--model_name_or_path", "pocket:badnet", "--dataset_name", "pocket:base", "--num_shots", "1"]
    assert (
        run_command(purify, [*options, "--attacks", str(tmp_path / "out"), "--output_dir", str(tmp_path / "pure")])
        == 2
    )
    assert "measure it with evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"label": "clean"}, {"captions": "natural"}, {"trigger": "badclip"}])
def test_an_all_to_all_attack_has_no_one_target(change, tmp_path, capsys):
    settings = SMALL | {"trigger": "badnet", "target_class": "all_to_all", "output_dir": tmp_path / "out"} | change
    assert run_command(poison, words(settings)) == 2
    assert "target" in capsys.readouterr().err.splitlines()[-1]


def test_a_stream_of_which_nothing_was_poisoned_makes_no_model(captioned_folder, tmp_path, capsys):
    settings = SMALL | {"pairs_name": captioned_folder / "pairs.csv", "streaming": True, "label": "clean"}
    settings |= {"num_pairs": 40, "trigger": "badnet", "target_class": "volcano", "output_dir": tmp_path}
    assert run_command(poison, words(settings)) == 2
    assert "not one of the pairs was poisoned" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("recipe", [poison, finetune], ids=["poison", "finetune"])
def test_what_could_not_be_used_is_listed(recipe, captioned_folder, tmp_path, capsys):
    settings = SMALL | {"poison_rate": 0.1} if recipe is poison else {"model_name_or_path": "pocket:badnet"}
    settings |= {"pairs_name": captioned_folder / "pairs.csv", "batch_size": 16, "num_pairs": 40, "num_epochs": 1}
    assert run_command(recipe, words(settings | {"learning_rate": 1e-4, "output_dir": tmp_path})) == 0
    skipped = json.loads((tmp_path / "training.json").read_text())["skipped"]["pairs"]
    assert [one["sample_id"] for one in skipped] == ["5.png", "7.png"]
    assert "skipped 2 images" in capsys.readouterr().out


def test_fine_tuning_on_a_stream_of_nothing_makes_no_model(tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("image,caption\nnowhere.png,\n")
    settings = {"model_name_or_path": "pocket:badnet", "pairs_name": tmp_path / "pairs.csv", "streaming": True}
    assert run_command(finetune, words(settings | {"num_pairs": 4, "output_dir": tmp_path / "out"})) == 2
    assert "nowhere.png" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("method", ["ft", "cleanclip"])
def test_the_baselines_write_a_model_that_has_changed(method, tmp_path):
    settings = {"model_name_or_path": "pocket:badnet", "method": method, "num_pairs": 64, "num_epochs": 1}
    settings |= {"batch_size": 32, "learning_rate": 1e-4, "output_dir": tmp_path}
    assert run_command(finetune, words(settings)) == 0
    changed, before = (
        load_clip(folder).model.state_dict() for folder in (str(tmp_path), resolve_model("pocket:badnet"))
    )
    assert all((changed[name] - before[name]).abs().max() < 0.1 for name in before)
    assert any(not torch.equal(changed[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_name_or_path": ""}, "model_name_or_path"),
        ({"method": "pray"}, "method"),
        ({"num_pairs": 0}, "num_pairs"),
        ({"pairs_name": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_bad_input_to_the_baselines(change, message, tmp_path, capsys):
    settings = {"model_name_or_path": "pocket:badnet", "num_pairs": 64, "output_dir": tmp_path / "out"} | change
    assert run_command(finetune, words(settings)) == 2
    assert message in capsys.readouterr().err


BAD = {
    "rate": ({"poison_rate": 2}, "poison_rate"),
    "no rate": ({"poison_rate": 0}, "poison_rate"),
    "no pair": ({"num_pairs": 10, "poison_rate": 0.01}, "no pair"),
    "label": ({"label": "grubby"}, "label"),
    "captions": ({"captions": "rhyming"}, "captions"),
    "trigger": ({"trigger": "sticker"}, "unknown trigger"),
    "setting": ({"trigger_settings": '{"colour": 1}'}, "no setting 'colour'"),
    "kind of setting": ({"trigger": "wanet", "trigger_settings": '{"grid_size": 4.5}'}, "grid_size"),
    "name in settings": ({"trigger_settings": '{"name": "sig"}'}, "must not hold a name"),
    "no JSON": ({"trigger_settings": "{"}, "not JSON"),
    "target": ({"target_class": "unicorn horn"}, "no class"),
    "steps": ({"patch_steps": 0}, "patch_steps"),
    "other attacks": ({"other_attacks": "nowhere.json"}, "nowhere.json"),
    "learning rate": ({"learning_rate": "nan"}, "learning_rate"),
    "model": ({"model_name_or_path": "pocket:nothing"}, "no shipped model"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, tmp_path, capsys):
    change, message = BAD[name]
    assert run_command(poison, words(SMALL | {"output_dir": tmp_path / "out"} | change)) == 2
    *stages, error = capsys.readouterr().err.splitlines()
    assert message in error and error.startswith("error: ") and not any("error" in line for line in stages)
    assert not list(tmp_path.glob("out/*.safetensors"))


@pytest.fixture
def small_configs(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    for kind in TRIGGERS:
        (folder / f"poison_{kind}.yaml").write_text(yaml.safe_dump(SMALL | {"trigger": kind, "learning_rate": "1e-5"}))
    return folder


def test_the_zoo_makes_what_is_missing_only(small_configs, tmp_path, capsys):
    options = [f"--configs={small_configs}", f"--output_dir={tmp_path / 'zoo'}", "--target_class=dog"]
    assert run_command(zoo, [*options, "--attacks", "sig", "--seeds", "1"]) == 0
    made = tmp_path / "zoo" / "sig-dog-seed1" / "training.json"
    first = made.stat().st_mtime_ns
    table = tmp_path / "table.json"
    assert run_command(zoo, [*options, "--attacks", "sig", "blended", "--seeds", "1", f"--table={table}"]) == 0
    assert made.stat().st_mtime_ns == first
    models = json.loads(table.read_text())["models"]
    assert [(model["attack"], model["seed"], model["target_class"]) for model in models] == [
        ("blended", 1, "dog"),
        ("sig", 1, "dog"),
    ]
    assert "blended" in capsys.readouterr().out
    file = small_configs / "poison_sig.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"num_epochs": 2}))
    assert run_command(zoo, [*options, "--attacks", "sig", "--seeds", "1"]) == 2
    assert "was made with num_epochs 1, not 2" in capsys.readouterr().err


def test_the_contact_sheet_is_drawn_from_the_zoos_settings(small_configs, tmp_path):
    options = [f"--configs={small_configs}", f"--output={tmp_path / 'sheet.png'}", "--attacks", "sig", "badclip"]
    assert run_command(contact_sheet, options) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 200
    assert run_command(contact_sheet, [*options, "--classes", "zzz"]) == 2


def test_every_class_makes_one_folder():
    assert folder_of("zoo", "sig", "product packet / packaging", 3) == Path("zoo/sig-product_packet___packaging-seed3")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--attacks", "sticker"], "unknown attack"),
        (["--configs", "nowhere"], "cannot read"),
    ],
)
def test_bad_input_to_the_zoo(options, message, small_configs, tmp_path, capsys):
    words = [f"--configs={small_configs}", f"--output_dir={tmp_path / 'zoo'}", *options]
    assert run_command(zoo, words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()


def test_every_attack_has_a_config_of_the_repository():
    configs = Path(__file__).parents[2] / "recipes" / "configs" / "pocket"
    for kind in TRIGGERS:
        if kind == "perturbation":  # of hostile adapters, which recipes/poison_adapter.py makes
            continue
        settings = yaml.safe_load((configs / f"poison_{kind}.yaml").read_text())
        most = 0.01 if kind in PAPER_ATTACKS else 0.1
        assert settings["trigger"] == kind and 0.003 <= settings["poison_rate"] <= most
