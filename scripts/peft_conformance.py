"""Runs PEFT's own tests against CBPT, on a tiny CLIP.

Usage:
    python scripts/peft_conformance.py [pytest options]

Fetches the source distribution of the installed PEFT with pip, once, into `.cache/peft-tests/`, and runs
`tests/tuner/peft_suite.py`. Fails if a test fails that is not excluded below, and if an excluded test passes or
is gone. Where the distribution cannot be fetched nothing is run, and the exit code is 75.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_FETCHED = 75

GENERATES = "calls generate(), which CLIP does not have"
HUB = "fetches a LoRA config from the Hub"
FLOAT32 = "autocast_adapter_dtype=False: the context stays in float32 whatever the base is"
EMBEDDING = "expects an embedding without gradient, but the token embedding is the layer that CBPT adapts"
EXCLUDED = {
    "TestCommon::test_add_adapter_no_autocast_adapter_dtype": FLOAT32,
    "TestCommon::test_disable_adapter": GENERATES,
    "TestCommon::test_generate": GENERATES,
    "TestCommon::test_generate_half_prec": GENERATES,
    "TestCommon::test_generate_pos_args": GENERATES,
    "TestCommon::test_passing_input_embeds_works": "passes inputs_embeds, which CLIP does not take",
    "TestCommon::test_prepare_for_training": EMBEDDING,
    "TestCustomModel::test_adapter_dtype_autocast[False-False-dtype0-CBPT]": FLOAT32,
    "TestCustomModel::test_adapter_dtype_autocast[False-False-dtype1-CBPT]": FLOAT32,
    "TestCustomModel::test_adapter_dtype_autocast[True-False-dtype0-CBPT]": FLOAT32,
    "TestCustomModel::test_adapter_dtype_autocast[True-False-dtype1-CBPT]": FLOAT32,
    "TestConfig::test_from_pretrained[CBPT]": HUB,
    "TestConfig::test_from_pretrained_cache_dir[CBPT]": HUB,
    "TestConfig::test_save_pretrained_with_runtime_config[CBPT]": HUB,
}


class Exclusions:
    """A pytest plugin that expects exactly the excluded tests to fail."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        by_name = {item.nodeid.split("::", 1)[1]: item for item in items}
        gone = sorted(EXCLUDED.keys() - by_name)
        if gone:
            raise pytest.UsageError(f"Excluded, but not among PEFT's tests: {', '.join(gone)}")
        for name, reason in EXCLUDED.items():
            by_name[name].add_marker(pytest.mark.xfail(reason=reason, strict=True))


def fetch_tests(peft_version: str) -> Path:
    """Returns the folder that holds PEFT's tests as the package `peft_tests`, fetched unless it is there."""
    folder = ROOT / ".cache" / "peft-tests" / peft_version
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as download:
        source = ["--no-deps", "--no-binary", "peft", "--dest", download, f"peft=={peft_version}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *source], check=True)
        (archive,) = Path(download).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tests = [member for member in tar if Path(member.name).parts[1:2] == ("tests",)]
            tar.extractall(download, tests, filter="data")
        unpacked = Path(download) / "unpacked"
        unpacked.mkdir()
        (Path(download) / f"peft-{peft_version}" / "tests").rename(unpacked / "peft_tests")
        unpacked.rename(folder)
    return folder


def main(options: list[str]) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        folder = fetch_tests(version("peft"))
    except subprocess.CalledProcessError:
        print("SKIPPED: PEFT's source distribution cannot be fetched, its own tests were NOT run", file=sys.stderr)
        return NOT_FETCHED
    pythonpath = f"pythonpath={folder} {ROOT}"
    quiet = ["-q", "-rsx", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider"]
    suite = str(ROOT / "tests" / "tuner" / "peft_suite.py")
    return pytest.main([suite, "-o", pythonpath, *quiet, *options], plugins=[Exclusions()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
