"""The versions that a result was made with."""

import platform
from importlib.metadata import version

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "huggingface_hub")


def package_versions() -> dict[str, str]:
    """Versions of Python, peft_cbpt and the libraries it stands on."""
    from peft_cbpt import __version__

    return {"python": platform.python_version(), "peft_cbpt": __version__} | {
        package: version(package) for package in _PACKAGES
    }
