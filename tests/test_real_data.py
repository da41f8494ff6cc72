"""End to end on photographs that nobody here drew: written by the recipe, purified, measured."""

import json
from pathlib import Path

import pytest

from peft_cbpt.cli import main
from peft_cbpt.data.images import load_labelled_images
from recipes import write_real_images

FASHION = Path("/usr/share/datasets/fashion-mnist")
QUICK = "--only prompts --num_shots 16 --outer_solver prompts --num_train_epochs 30 ".split()
QUICK += "--warmup_epochs 29 --learning_rate 0.05".split()


def write(dataset, folder, limit=None):
    write_real_images.main(dataset, folder, limit)
    return str(folder)


def purify_and_evaluate(data, tmp_path):
    """Figures of `results.json`, and of `evaluation.json` for the template and the adapter."""
    adapter, out = str(tmp_path / "adapter"), str(tmp_path / "out")
    where = ["--model_name_or_path", "pocket:clean", "--class_names_file", f"{data}/class_names.txt"]
    assert main(["purify", *where, "--dataset_name", data, "--output_dir", adapter, *QUICK, "--use_cpu", "true"]) == 0
    measured = ["--datasets", data, "--classifiers", "template", adapter]
    assert main(["evaluate", *where, *measured, "--output_dir", out]) == 0
    return [json.loads(Path(file).read_text()) for file in (f"{adapter}/results.json", f"{out}/evaluation.json")]


def test_digits_are_learned_from_few_shots(tmp_path):
    data = write("digits", tmp_path / "digits")
    names = load_labelled_images(data, "test", class_names_file=f"{data}/class_names.txt").features["label"].names
    assert names[0] == "zero" and names[9] == "nine"
    results, evaluation = purify_and_evaluate(data, tmp_path)
    assert len(results["shots"]) == 160 and results["n_test_images"] == 599
    before, after = results["before"]["clean_accuracy"], results["after"]["clean_accuracy"]
    assert after > before + 0.1, "prompts learned from shots beat a template of a model that never saw a digit"
    assert [cell["accuracy"] for cell in evaluation["cells"]] == pytest.approx([before, after])
    assert all(cell["n_images"] == 599 for cell in evaluation["cells"])


@pytest.mark.fashion_mnist
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_fashion_mnist_goes_through_the_same_commands(tmp_path):
    data = write("fashion_mnist", tmp_path / "fashion", 1000)
    results, evaluation = purify_and_evaluate(data, tmp_path)
    assert results["n_test_images"] == 1000 and len(results["shots"]) == 160
    assert results["after"]["clean_accuracy"] > results["before"]["clean_accuracy"]
    assert evaluation["cells"][1]["accuracy"] == pytest.approx(results["after"]["clean_accuracy"])
