"""Packages that loading an adapter does not need, and the extra of ours that brings each."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft_cbpt.common.errors import InputError

EXTRAS = {
    "PIL": "purify",
    "bchlib": "attacks",
    "captum": "reports",
    "datasets": "purify",
    "evaluate": "purify",
    "jinja2": "purify",
    "kornia": "baselines",
    "matplotlib": "purify",
    "sklearn": "reports",
}


@contextmanager
def named_extras() -> Iterator[None]:
    """Within this context a missing package is an error that names the extra to install.

    Raises:
        InputError: if a package of an extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        if package not in EXTRAS:
            raise
        raise InputError(f"the package {package} is missing: pip install 'peft-cbpt[{EXTRAS[package]}]'") from error
