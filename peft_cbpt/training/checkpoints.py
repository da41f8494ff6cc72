"""Which job a checkpoint belongs to, and whether it is whole."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from peft_cbpt.errors import InputError

CACHE_FILE = "perturbed_features.safetensors"


def job_hash(
    base: str,
    class_names: Sequence[str],
    samples: Sequence[tuple[int, str]],
    inversion: dict[str, Any],
    positives: str,
    seed: int,
) -> str:
    """SHA-256 over all that perturbed features depend on: base weights, images, and how triggers are inverted."""
    return hashlib.sha256(repr([base, class_names, samples, inversion, positives, seed]).encode()).hexdigest()


def check_checkpoint(folder: Path, job: str, context_shape: tuple[int, ...]) -> None:
    """See that a checkpoint is whole and belongs to a job.

    Raises:
        InputError: if a file is missing or damaged, or if the checkpoint was made by another job or for another shape
            of context.
    """
    try:
        json.loads((folder / "trainer_state.json").read_text())
        (context,) = load_file(folder / "adapter_model.safetensors").values()
        with safe_open(folder / CACHE_FILE, "pt") as cache:
            made_by = (cache.metadata() or {}).get("job")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is no whole checkpoint: give another, or start anew") from error
    if made_by != job or tuple(context.shape) != context_shape:
        raise InputError(
            f"{folder} was made with another model, images, classes, seed or inversion settings: "
            "resume with the same ones, or start anew"
        )
