"""Opening what `purify` left behind: results, base model and adapter."""

from pathlib import Path

from peft import PeftModel
from peft.utils import CONFIG_NAME

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
from peft_cbpt.hub.adapter_folder import RESULTS_FILE, read_adapter, read_json
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.tuner import CBPTConfig


def adapter_folder(folder: str) -> Path:
    """The folder of an adapter, after a look at its files.

    Raises:
        InputError: if it is none.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"there is no folder {folder}: give the --output_dir of a run of purify")
    read_adapter(path)
    return path


def load_base(folder: Path, name_or_path: str | None) -> LoadedCLIP:
    """The base model of an adapter: the one given, else the one that its results or its config name.

    Raises:
        InputError: if it cannot be loaded.
    """
    results = read_json(folder / RESULTS_FILE) if (folder / RESULTS_FILE).exists() else {}
    of_a_file = name_or_path is None or Path(name_or_path).is_file()
    how = (results.get("settings", {}).get("checkpoint") or {}) if of_a_file else {}
    if name_or_path is None:
        config = read_json(folder / CONFIG_NAME)
        name_or_path = results.get("model") or config.get("base_model_name_or_path")
        advice = "name the base model with --model_name_or_path"
    else:
        advice = "check --model_name_or_path"
    try:
        return open_clip(name_or_path or "", checkpoint=CheckpointArguments(**how))
    except InputError as error:
        raise InputError(f"the base model of {folder} cannot be loaded, {advice}: {error}") from error


def load_adapter(folder: Path, clip: LoadedCLIP) -> PeftModel:
    """The base with its adapter, in eval mode.

    Raises:
        InputError: if the adapter is damaged or belongs to another base.
    """
    prompts = isinstance(read_adapter(folder), CBPTConfig)  # a LoRA knows no strictness
    try:
        return PeftModel.from_pretrained(clip.model, str(folder), **({"strict": True} if prompts else {})).eval()
    except Exception as error:  # peft, safetensors and torch raise many kinds
        line = " ".join(str(error).split())
        raise InputError(f"cannot load the adapter in {folder} onto this base model: {line}") from error
