"""The versions that a result was made with."""

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "huggingface_hub")


def package_versions() -> dict[str, str]:
    """Versions of Python, peft_cbpt and the libraries it stands on."""
    from peft_cbpt import __version__

    return {"python": platform.python_version(), "peft_cbpt": __version__} | {
        package: version(package) for package in _PACKAGES
    }


@cache
def source_commit() -> str | None:
    """The git commit of the checkout that this package runs from, with `+` if the package differs from it.

    None for an installed package, also where it is installed into a folder of somebody's repository.
    """
    folder = Path(__file__).parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
