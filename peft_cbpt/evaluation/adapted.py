"""A CLIP with somebody's adapter on it, opened to be scanned."""

import copy
from dataclasses import dataclass, field

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.errors import InputError
from peft_cbpt.detection.heads import Heads
from peft_cbpt.evaluation.classifiers import adapter_config, attach_adapter, beside_undefended
from peft_cbpt.tuner import CBPTConfig


@dataclass(frozen=True)
class Adapted:
    """What an adapter makes of a CLIP.

    Args:
        clip: With the adapter's weights, if it has other than prompts.
        heads: Of an adapter of prompts (CBPT): its own and the undefended one; else None.
        class_names: That such an adapter knows, in the order of its features.
        encode: The image features that the heads answer on, of such an adapter.
    """

    clip: LoadedCLIP
    heads: Heads | None = None
    class_names: list[str] = field(default_factory=list)
    encode: EncodeImage | None = None


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
    own = LoadedCLIP(copy.deepcopy(clip.model), clip.tokenizer, clip.image_processor)
    model = attach_adapter(adapter, own)
    own.model.eval()
    if not isinstance(config, CBPTConfig):
        return Adapted(own)
    encode, heads = beside_undefended(model, own)
    return Adapted(own, heads, list(model.class_names), encode)
