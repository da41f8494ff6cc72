import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from peft_cbpt.cli import main
from peft_cbpt.detection import suspects
from peft_cbpt.pocket.model import resolve_model
from tests.conftest import ALL_CANDIDATES
from tests.hub.loopback import OWNER_TOKEN, LoopbackHub, serve

ROOT = Path(__file__).parents[2]
BASE_ID = "lab/pocket-badnet"
JOB = (
    "--only prompts "
    "--dataset_name pocket:base --num_classes 6 --num_shots 2 --test_images_per_class 4 --num_train_epochs 2 "
    "--attacks pocket:badnet --use_cpu --disable_tqdm true"
).split()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub that this process talks to, logged in as its user ada."""
    with serve() as running:
        constants = {
            "ENDPOINT": running.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
        yield running


@pytest.fixture(scope="session")
def purified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What purify wrote for a pocket CLIP that is on the Hub as `BASE_ID`."""
    folder = tmp_path_factory.mktemp("purified")
    model = ["--model_name_or_path", resolve_model("pocket:badnet"), "--base_model_id", BASE_ID]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suspects, "MOST_CANDIDATES", ALL_CANDIDATES)  # the card names them
        assert main(["purify", *model, *JOB, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def adapter(purified: Path, tmp_path: Path) -> Path:
    """A copy of `purified` to push or to spoil."""
    return shutil.copytree(purified, tmp_path / "adapter")


@pytest.fixture
def fresh(hub: LoopbackHub, tmp_path: Path) -> Callable[..., str]:
    """Run Python in a new process with an empty home and cache, in an empty folder; returns what it printed."""
    home = tmp_path / "home-of-zaphod"
    (home / "work").mkdir(parents=True)

    def run(*words: str, **environment: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
        given = {"HOME": str(home), "USER": "zaphod", "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.endpoint}
        done = subprocess.run(
            [sys.executable, "-W", "error::FutureWarning:__main__", *words],
            cwd=home / "work",
            env=kept | given | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
