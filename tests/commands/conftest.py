import shutil
from pathlib import Path

import pytest
import yaml

from peft_cbpt.cli import main
from peft_cbpt.reports import before_after, style
from tests.conftest import FEW_CLASSES

SMALL_RUN = """
    --model_name_or_path pocket:badnet --dataset_name pocket:base --attacks pocket:badnet
    --class_names banana dog pizza rocket --num_shots 2 --test_images_per_class 3
    --only prompts --num_train_epochs 2 --use_cpu true --disable_tqdm true
"""

SMALL_JOB = {
    "model_name_or_path": "pocket:badnet",
    "dataset_name": "pocket:base",
    "class_names": FEW_CLASSES,
    "num_shots": 4,
    "test_images_per_class": 10,
    "attacks": ["pocket:badnet"],
    "only": "prompts",
    "num_train_epochs": 3,
    "use_cpu": True,
    "disable_tqdm": True,
}
RUNNER_UP = {
    "dummy_triggers": "runner_up",
    "warmup_epochs": 1,
    "per_device_train_batch_size": 24,
    "inversion_steps": 4,
    "norm": "inf",
    "inversion_step_rule": "sign",
    "inversion_lr": 2 / 255,
}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing is a third of a small run; a test that looks at the picture asks for `pictures`."""
    monkeypatch.setattr(before_after, "png_bytes", lambda figure: b"\x89PNG")


@pytest.fixture
def pictures(no_picture, monkeypatch):
    """Pictures are drawn."""
    monkeypatch.setattr(before_after, "png_bytes", style.png_bytes)


@pytest.fixture
def run_purify(tmp_path, capsys):
    """Run `peft-cbpt purify` on the small job with some settings changed; returns exit code and stderr."""

    def run(*options, output=tmp_path / "out", **settings):
        config = tmp_path / "config.yaml"
        inner = {} if settings.get("dummy_triggers") == "universal" else RUNNER_UP
        config.write_text(yaml.safe_dump(SMALL_JOB | inner | {"output_dir": str(output)} | settings))
        code = main(["purify", "--config", str(config), *options])
        return code, capsys.readouterr().err

    return run


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
