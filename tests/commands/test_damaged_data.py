"""The main job on data of which 1% is truncated, greyscale, CMYK, animated, 16-bit, and one picture is 20,000 wide."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch

from peft_cbpt.cli import main
from peft_cbpt.reports import pictures
from tests.conftest import FEW_CLASSES
from tests.data.layouts import write_damaged_folders


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The data, its damaged images of both splits, and the output of a run on it with what was printed."""
    folder = tmp_path_factory.mktemp("damaged")
    data = folder / "data"
    damaged = [write_damaged_folders(data, FEW_CLASSES, split) for split in ("train", "test")]
    (folder / "names.txt").write_text("".join(f"{name}\t{name}\n" for name in FEW_CLASSES))
    options = f"""--model_name_or_path pocket:badnet --dataset_name {data} --class_names_file {folder}/names.txt
        --attacks pocket:badnet --num_shots 32 --only prompts
        --num_train_epochs 2 --use_cpu true --disable_tqdm true"""
    with redirect_stdout(StringIO()) as printed:
        assert main(["purify", *options.split(), "--output_dir", str(folder / "out")]) == 0
    return data, damaged, folder / "out", printed.getvalue()


def test_purification_skips_and_lists_what_cannot_be_read(job):
    _, (damaged, damaged_test), output, printed = job
    results = json.loads((output / "results.json").read_text())
    assert results["n_test_images"] == 198 and len(results["shots"]) == 6 * 32
    listed = {name: [one["sample_id"] for one in skipped] for name, skipped in results["skipped"].items()}
    assert listed["test"] == sorted(damaged_test) and set(listed["shots"]) == set(damaged)
    assert not set(results["shots"]) & set(damaged)
    assert all(one["reason"] for skipped in results["skipped"].values() for one in skipped)
    assert "skipped 2 images that cannot be read (test)" in printed and damaged_test[0] in printed
    assert (output / "before_after.png").exists() and f"peft-cbpt report {output}\n" in printed


def test_a_report_explains_the_images_that_were_read(job, tmp_path, monkeypatch):
    for package in ("captum", "sklearn"):
        pytest.importorskip(package)
    data, _, output, _ = job
    where = ["--dataset_name", str(data), "--class_names_file", str(data.parent / "names.txt")]
    explain, n_explained = pictures._explain, []

    def checked(purified, pixels, features, text_trigger):
        with torch.no_grad():
            for see, feature in zip((purified.see_before, purified.see_after), features, strict=True):
                torch.testing.assert_close(see(pixels)[0], feature, rtol=0, atol=1e-4)
        n_explained.append(1)
        return explain(purified, pixels, features, text_trigger)

    monkeypatch.setattr(pictures, "_explain", checked)
    assert main(["report", str(output), *where, "--output_dir", str(tmp_path)]) == 0
    assert len(n_explained) == 2 * pictures.N_EXPLAINED
