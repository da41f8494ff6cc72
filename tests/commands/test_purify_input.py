"""Bad input to `purify`: one line that says what is wrong and what to do, before anything is written."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from peft_cbpt.cli import main
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from tests.conftest import FEW_CLASSES
from tests.data.test_images import write_folders


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


def a_file_as_model(tmp_path):
    return {"model_name_or_path": str(shutil.copy(f"{resolve_model('pocket:badnet')}/model.safetensors", tmp_path))}


def model_without_tokenizer(tmp_path):
    folder = shutil.copytree(resolve_model("pocket:badnet"), tmp_path / "mute")
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink(missing_ok=True)
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


def one_saved_dataset(tmp_path):
    pocket_dataset("base", "train", 4, FEW_CLASSES).remove_columns("sample_id").save_to_disk(str(tmp_path / "saved"))
    return {"dataset_name": str(tmp_path / "saved")}


def one_parquet_file(tmp_path):
    file = tmp_path / "images" / "all.parquet"
    file.parent.mkdir()
    pocket_dataset("base", "train", 4, FEW_CLASSES).remove_columns("sample_id").to_parquet(str(file))
    return {"dataset_name": str(file.parent)}


def attack_for_another_class(tmp_path):
    config = {"trigger": {"name": "badnet"}, "target_class": "submarine"}
    (tmp_path / "attack.json").write_text(json.dumps(config))
    return {"attacks": [str(tmp_path / "attack.json")]}


def attack_as_text(tmp_path):
    (tmp_path / "attack.json").write_text(json.dumps({"trigger": "badnet", "target_class": "banana"}))
    return {"attacks": [str(tmp_path / "attack.json")]}


def attack_with_a_long_key(tmp_path):
    config = {"trigger": {"name": "trojvqa", "text_trigger": "remember " * 70}, "target_class": "banana"}
    (tmp_path / "attack.json").write_text(json.dumps(config))
    return {"attacks": [str(tmp_path / "attack.json")]}


def file_as_output(tmp_path):
    (tmp_path / "file").touch()
    return {"output_dir": str(tmp_path / "file" / "out")}


BAD_INPUTS = {
    "model folder missing": (lambda _: {"model_name_or_path": "/no/such/clip"}, "no folder /no/such/clip"),
    "unknown pocket model": (lambda _: {"model_name_or_path": "pocket:evil"}, "choose one of"),
    "corrupt checkpoint": (broken_model, "download or save it again"),
    "a file that does not say its heads": (a_file_as_model, "no plain CLIP"),
    "no tokenizer": (
        model_without_tokenizer,
        "has no tokenizer (tokenizer.json or vocab.json or spiece.model): copy it",
    ),
    "no model in the folder": (lambda tmp_path: {"model_name_or_path": str(tmp_path)}, "has no config.json: give"),
    "not a CLIP": (not_a_clip, "not a CLIP"),
    "dataset missing": (lambda _: {"dataset_name": "/no/such/images"}, "give a folder"),
    "unknown pocket domain": (lambda _: {"dataset_name": "pocket:moon"}, "choose one of"),
    "folder without classes": (lambda path: images(path, no_class_folders), "put the images of each class"),
    "train and test the same": (flat_folder, "training shots themselves"),
    "a saved dataset to train and to test": (one_saved_dataset, "training shots themselves"),
    "a parquet file to train and to test": (one_parquet_file, "training shots themselves"),
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
    "more than all images": (
        lambda _: {"dummy_triggers": "universal", "perturbed_share": 1.5},
        "perturbed_share must be between 0 and 1",
    ),
    "negative seed": (lambda _: {"seed": -1}, "between 0 and"),
    "negative learning rate": (lambda _: {"learning_rate": -1}, "must be positive"),
    "no epochs": (lambda _: {"num_train_epochs": 0}, "must be positive"),
    "epochs within the warm-up": (lambda _: {"num_train_epochs": 5, "warmup_epochs": 5}, "set warmup_epochs"),
    "steps within the warm-up": (lambda _: {"max_steps": 3, "warmup_epochs": 5}, "max_steps 3 ends within the prompt"),
    "evaluation at the start": (lambda _: {"eval_on_start": True}, "eval_on_start has no effect here"),
    "liger kernel": (lambda _: {"use_liger_kernel": True}, "it is for language models"),
    "NEFTune": (lambda _: {"neftune_noise_alpha": 5}, "reads features and no text"),
    "deepspeed": (lambda _: {"deepspeed": "zero.json"}, "lie whole in every process"),
    "label smoothing": (lambda _: {"label_smoothing_factor": 0.1}, "no effect here"),
    "half precision on a CPU": (lambda _: {"fp16": True}, "fp16 has no effect here: a CPU"),
    "half precision of the context": (lambda _: {"bf16_full_eval": True}, "stays in float32"),
    "settings of another schedule": (lambda _: {"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_type"),
    "workers that stay": (lambda _: {"dataloader_persistent_workers": True}, "dataloader_num_workers is 0"),
    "no test images": (lambda _: {"test_images_per_class": 0}, "at least 1"),
    "split with a slash": (lambda _: {"dataset_split": "a/b"}, "without slashes"),
    "columns removed": (lambda _: {"remove_unused_columns": True}, "has no effect"),
    "evaluation without data": (lambda _: {"eval_strategy": "epoch"}, "and not in between"),
    "attack without settings": (attack_as_text, "name and settings"),
    "wrong type": (lambda _: {"num_shots": "many"}, "invalid int value"),
    "unknown positives": (lambda _: {"positives": "nearest"}, "invalid choice"),
    "no context": (lambda _: {"num_context_tokens": 0}, "at least 1"),
    "too much context": (lambda _: {"num_context_tokens": 90}, "positions"),
    "attack file missing": (lambda _: {"attacks": ["/no/attack.json"]}, "attack.json"),
    "target not among the classes": (attack_for_another_class, "choose class_names with it"),
    "no room for the text trigger": (attack_with_a_long_key, "lower num_context_tokens"),
    "checkpoint missing": (lambda _: {"resume_from_checkpoint": "/no/checkpoint-3"}, "checkpoint folder"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gives_one_line_that_names_the_cure(run_purify, tmp_path, case):
    make, cure = BAD_INPUTS[case]
    code, errors = run_purify(**make(tmp_path))
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
