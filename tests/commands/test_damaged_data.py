"""The main job on data of which 1% is truncated, greyscale, CMYK, animated, 16-bit, and one picture is 20,000 wide."""

import json

import pytest
import torch

from peft_cbpt.cli import main
from peft_cbpt.reports import pictures
from tests.conftest import FEW_CLASSES
from tests.data.layouts import write_damaged_folders


def test_purification_skips_and_lists_what_cannot_be_read(tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    damaged = write_damaged_folders(data, FEW_CLASSES, "train")
    damaged_test = write_damaged_folders(data, FEW_CLASSES, "test")
    options = f"""--model_name_or_path pocket:badnet --dataset_name {data} --attacks pocket:badnet --num_shots 32
        --num_train_epochs 2 --warmup_epochs 1 --inversion_steps 1 --use_cpu true --disable_tqdm true"""
    assert main(["purify", *options.split(), "--output_dir", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["n_test_images"] == 198 and len(results["shots"]) == 6 * 32
    listed = {name: [one["sample_id"] for one in skipped] for name, skipped in results["skipped"].items()}
    assert listed["test"] == sorted(damaged_test) and set(listed["shots"]) == set(damaged)
    assert not set(results["shots"]) & set(damaged)
    assert all(one["reason"] for skipped in results["skipped"].values() for one in skipped)
    printed = capsys.readouterr().out
    assert "skipped 2 images that cannot be read (test)" in printed and damaged_test[0] in printed
    assert (tmp_path / "out" / "before_after.png").exists()

    pytest.importorskip("captum")
    explain, n_explained = pictures._explain, []

    def checked(purified, pixels, feature, text_trigger):
        with torch.no_grad():
            torch.testing.assert_close(purified.encode_image(pixels)[0], feature, rtol=0, atol=1e-4)
        n_explained.append(1)
        return explain(purified, pixels, feature, text_trigger)

    monkeypatch.setattr(pictures, "_explain", checked)
    assert main(["report", str(tmp_path / "out"), "--dataset_name", str(data)]) == 0
    assert len(n_explained) == 2 * pictures.N_EXPLAINED
