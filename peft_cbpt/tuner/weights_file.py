"""A look at an adapter's weights file before PEFT reads it."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file

from peft_cbpt.tuner.fingerprint import tensors_fingerprint


def find_weights(name_or_path: str | os.PathLike, subfolder: str | None = None, **download: Any) -> Path | None:
    """The safetensors file of an adapter in a folder or on the Hub; None if there is none.

    Args:
        name_or_path: The folder, or a Hub id.
        subfolder: A folder in it.
        **download: For `huggingface_hub.hf_hub_download`.
    """
    file = Path(name_or_path, subfolder or "", SAFETENSORS_WEIGHTS_NAME)
    if Path(name_or_path).is_dir():
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **download))
    except (EntryNotFoundError, HfHubHTTPError):  # what is wrong, PEFT will say
        return None


def context_fingerprint(file: Path) -> str:
    """SHA-256 over the values in an adapter's weights file.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The adapter's weights in {file} are damaged or incomplete ({error}): save or download them again."
        ) from error
    return tensors_fingerprint(weights)


def check_weights(file: Path, recorded: str | None) -> None:
    """Raises a ValueError if an adapter's weights cannot be read, or are not those that were saved with the config."""
    if context_fingerprint(file) != recorded and recorded is not None:
        raise ValueError(
            f"The adapter's weights in {file} are not those that were saved with its config: they were changed "
            "afterwards. Get the adapter again from where it comes from."
        )
