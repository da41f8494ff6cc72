"""A look at an adapter's weights file before PEFT reads it."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open


def check_weights(name_or_path: str | os.PathLike, subfolder: str | None = None, **download: Any) -> None:
    """See that an adapter's safetensors file, in a folder or on the Hub, is whole; if there is none, PEFT will say so.

    Args:
        name_or_path: The folder, or a Hub id.
        subfolder: A folder in it.
        **download: For `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: if the file is damaged or incomplete.
    """
    if Path(name_or_path).is_dir():
        file = Path(name_or_path, subfolder or "", SAFETENSORS_WEIGHTS_NAME)
        if not file.is_file():
            return
    else:
        try:
            file = Path(hf_hub_download(str(name_or_path), SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **download))
        except (EntryNotFoundError, HfHubHTTPError):
            return
    try:
        with safe_open(file, "pt"):  # which reads the header and compares the file's size with it
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The adapter's weights in {file} are damaged or incomplete ({error}): save or download them again."
        ) from error
