import shutil
from pathlib import Path

import pytest

from peft_cbpt.cli import main

SMALL_RUN = """
    --model_name_or_path pocket:badnet --dataset_name pocket:base --attacks pocket:badnet
    --class_names banana dog pizza rocket --num_shots 2 --test_images_per_class 3
    --num_train_epochs 2 --warmup_epochs 1 --inversion_steps 2 --use_cpu true --disable_tqdm true
"""


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The output of one small `peft-cbpt purify`."""
    folder = tmp_path_factory.mktemp("purified")
    assert main(["purify", *SMALL_RUN.split(), "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def purified(finished_run, tmp_path) -> Path:
    """A copy of that output that a test may spoil."""
    return Path(shutil.copytree(finished_run, tmp_path / "purified"))
