"""A CLIP with somebody's adapter on it, opened to be scanned."""

import copy
from dataclasses import dataclass, field
from typing import Any

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.common.errors import InputError
from peft_cbpt.detection.heads import Heads
from peft_cbpt.evaluation.classifiers import adapter_config, adapter_features, attach_adapter
from peft_cbpt.tuner import CBPTConfig


@dataclass(frozen=True)
class Adapted:
    """What an adapter makes of a CLIP.

    Args:
        clip: With the adapter's weights, if it has other than prompts.
        heads: Of an adapter of prompts (CBPT): its own and the undefended one; else None.
        class_names: That such an adapter knows, in the order of its features.
    """

    clip: LoadedCLIP
    heads: Heads | None = None
    class_names: list[str] = field(default_factory=list)


def open_adapted(adapter: str, clip: LoadedCLIP) -> Adapted:
    """Open an adapter, of prompts or any other that PEFT knows; `clip` stays what it is.

    Args:
        adapter: Its folder or Hub id.
        clip: The model that it belongs to.

    Raises:
        InputError: if there is no adapter, or it does not fit the model.
    """
    config = adapter_config(adapter)
    if config is None:
        raise InputError(f"{adapter} is no PEFT adapter: give a folder or a Hub id with an adapter_config.json")
    if not isinstance(config, CBPTConfig):
        model = attach_adapter(adapter, LoadedCLIP(copy.deepcopy(clip.model), clip.tokenizer, clip.image_processor))
        base: Any = model.get_base_model().eval()
        return Adapted(LoadedCLIP(base, clip.tokenizer, clip.image_processor))
    model = attach_adapter(adapter, clip)
    adapted, undefended = (adapter_features(model, clip, adapter=own)("") for own in (True, False))
    scale, names = clip.model.logit_scale.exp().item(), list(model.class_names)
    model.unload()
    return Adapted(clip, Heads(adapted, undefended, scale), names)
