"""Print versions and devices, for bug reports: paste the lines into the issue."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from peft_cbpt import __version__
from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.parsing import parse
from peft_cbpt.common.extras import EXTRAS
from peft_cbpt.common.versions import source_commit

CORE = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "huggingface_hub", "numpy")
# Where the distribution is not called as the module is.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "PEFT_CBPT_CACHE")
PAGE = HelpPage("env", "peft-cbpt env")


def environment() -> dict[str, str]:
    """What a bug report should say; names no path and no token."""
    told = {
        "peft_cbpt": __version__ + (f" ({commit})" if (commit := source_commit()) else ""),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "devices": _devices(),
    }
    packages = {name: _version(name) for name in CORE}
    extras = {f"{name} [{extra}]": _version(DISTRIBUTIONS.get(name, name)) for name, extra in EXTRAS.items()}
    variables = {name: "set" if "CACHE" in name else os.environ[name] for name in VARIABLES if name in os.environ}
    return told | packages | extras | variables


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
        return f"{', '.join(names)}; CUDA {torch.version.cuda}"
    return f"{torch.accelerator.current_accelerator() if torch.accelerator.is_available() else 'cpu'}"


def env(argv: Sequence[str]) -> None:
    """Print it."""
    parse([], argv, __doc__ or "", PAGE)
    for name, value in environment().items():
        print(f"{name}: {value}")
