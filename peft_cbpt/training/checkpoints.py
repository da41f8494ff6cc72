"""Which job a checkpoint belongs to, and whether it is whole."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

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


def find_checkpoint(wanted: str | None, output: Path, check: Callable[[str], None], overwrite: bool) -> str | None:
    """The checkpoint to go on from; if there is to be none, see that those in the way may be removed.

    Args:
        wanted: A checkpoint's folder; `true` for the last one in `output`; `false` or None for a new start.
        output: The folder of the run.
        check: Raises `InputError` for a folder that is no whole checkpoint of this run.
        overwrite: Whether those of other runs may be removed.

    Raises:
        InputError: if the one wanted cannot be used, or those of another run are in the way.
    """
    wanted = (wanted or "false").lower() if (wanted or "false").lower() in ("true", "false") else wanted
    if wanted != "false":
        checkpoint = get_last_checkpoint(str(output)) if wanted == "true" else wanted
        if checkpoint is not None and not Path(checkpoint).is_dir():
            raise InputError(f"{checkpoint} is no checkpoint folder: give one, or true for the last in output_dir")
        if checkpoint is not None:
            check(checkpoint)
        return checkpoint
    for old in () if overwrite else sorted(output.glob("checkpoint-*")):
        try:
            check(str(old))
        except InputError as error:
            raise InputError(
                f"{old} is not of this run, and a new one would remove it: go on with that run's own settings and "
                "--resume_from_checkpoint true, name another output_dir, or give --overwrite_output_dir true"
            ) from error
    return None
