"""The files of an adapter's folder, read and checked."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from peft_cbpt.common.errors import InputError
from peft_cbpt.hub.sharing import is_local, shareable
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.weights_file import check_weights

RESULTS_FILE = "results.json"
SCHEMA_VERSION = 3
"""Of `RESULTS_FILE`; docs/results-schema.md."""
TRIGGERS_FILE = "universal_triggers.safetensors"
"""By CLASS/BUDGET the universal triggers (3, H, W) that a run tuned against."""
PICTURES = ("*.png", "*.html")
POCKET_PREFIX = "pocket:"


def read_adapter(folder: Path) -> CBPTConfig | LoraConfig:
    """The config of an adapter that purify wrote, whose files are whole and fit each other; as far as can be seen.

    That of a purified encoder without prompts is a LoRA, with results beside it.

    Raises:
        InputError: if a file is missing, damaged or changed, or if weights and config are of different adapters.
    """
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: give the folder that purify wrote")
    try:
        kind = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["peft_type"]
        if kind == "LORA" and (folder / RESULTS_FILE).is_file():
            check_weights(folder)
            if not all(".lora_" in name for name in load_file(folder / SAFETENSORS_WEIGHTS_NAME)):
                raise InputError(f"config and weights in {folder} are of different adapters")
            return LoraConfig.from_pretrained(str(folder))
        if kind != "CBPT":
            raise InputError(f"{folder} holds an adapter of kind {kind}, not CBPT")
        config = CBPTConfig.from_pretrained(folder)
        weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        shapes = [tuple(value.shape) for name, value in weights.items() if ".lora_" not in name]
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"the adapter in {folder} cannot be used: {str(error).rstrip('.')}") from error
    needed = (config.num_contexts, config.num_context_tokens)
    if [shape[:2] for shape in shapes] != [needed]:
        raise InputError(
            f"the config in {folder} has {needed[0]} contexts of {needed[1]} tokens each, but the weights "
            f"have the shape {shapes}: these files are of different adapters"
        )
    if bool(config.encoder_lora) != (len(weights) > len(shapes)):
        raise InputError(
            f"config and weights in {folder} do not agree on a repaired encoder: they are of two adapters"
        )
    return config


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: if it cannot be read or is no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object")
    return content


def read_results(folder: Path) -> dict[str, Any] | None:
    """What purify measured, without paths of this machine; None if it is not there.

    Raises:
        InputError: if the file is damaged.
    """
    file = folder / RESULTS_FILE
    return shareable(read_json(file)) if file.is_file() else None


def find_pictures(folder: Path) -> list[str]:
    """PNG and HTML files under a folder, relative to it; hidden folders and checkpoints are left out."""
    found = [path.relative_to(folder) for pattern in PICTURES for path in folder.rglob(pattern)]
    return sorted(
        path.as_posix() for path in found if not any(part.startswith((".", "checkpoint-")) for part in path.parts)
    )


def base_name(config: PeftConfig, base_model_id: str | None = None) -> str | None:
    """What to call the base model: a Hub id or `pocket:NAME`; None if only a path of this machine is known."""
    name = base_model_id or config.base_model_name_or_path
    return name if name and not is_local(name) else None
