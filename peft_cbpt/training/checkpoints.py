"""Which job a checkpoint belongs to, and whether it is whole."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from peft_cbpt.common.errors import InputError

JOB_FILE = "job.json"


def write_job(folder: Path, job: str) -> None:
    """Say in a checkpoint which job it is of."""
    (folder / JOB_FILE).write_text(json.dumps({"job": job}) + "\n", encoding="utf-8")


def check_checkpoint(folder: Path, job: str, adapter_name: str, context_shape: tuple[int, ...]) -> None:
    """See that a checkpoint is whole and belongs to a job.

    PEFT saves adapters of other names than `default` in folders of their names.

    Raises:
        InputError: if a file is missing or damaged, or if the checkpoint was made by another job or for another shape
            of context.
    """
    try:
        json.loads((folder / "trainer_state.json").read_text())
        weights = folder if adapter_name == "default" else folder / adapter_name
        (context,) = load_file(weights / "adapter_model.safetensors").values()
        made_by = json.loads((folder / JOB_FILE).read_text())["job"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder} is no whole checkpoint: give another, or start anew") from error
    if made_by != job or tuple(context.shape) != context_shape:
        raise InputError(
            f"{folder} was made with another model, images, prompts, seed or inversion settings: "
            "resume with the same ones, or start anew"
        )
