"""How much is encoded at once, from what autograd would keep of it.

The bound is a setting and not what happens to be free: batches must not differ from run to run, or results would in
their last digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage

WORKING_SHARE = 1 / 8
"""Of the text tower's activations, those of the chunk that is computed again; the rest is kept."""


def activation_bytes(encode: Callable[[], Tensor], model: torch.nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `encode()`, the model's own weights not counted."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        encoded = encode()
    del encoded
    return sum(kept.values())


def image_batch_size(
    encode_image: EncodeImage, image: Tensor, model: torch.nn.Module, largest: int, memory_gb: float
) -> int:
    """How many images like `image` (1, 3, H, W) go through the tower at once: `largest` if memory has room."""
    per_image = activation_bytes(lambda: encode_image(image.clone().requires_grad_()), model)
    return min(largest, max(1, int(memory_gb * 1e9 // max(1, per_image))))


@dataclass(frozen=True)
class TextChunks:
    """How the class prompts are encoded; see `CBPTModel.encode_class_prompts`."""

    chunk_size: int | None
    kept_tokens: int = 0


def text_chunks(model: PeftModel, memory_gb: float, shares: int) -> TextChunks:
    """Chunks that keep the text tower's activations within the bound; all prompts at once if they fit.

    Args:
        model: A CLIP with a CBPT adapter.
        memory_gb: The bound, in 10^9 bytes.
        shares: How many processes share the classes.
    """
    tower: Any = model
    lengths: Sequence[int] = tower.class_prompt_lengths()
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    width = tower.class_prompt_ids([longest]).shape[1]
    per_token = max(1, activation_bytes(lambda: tower.encode_class_prompts([longest]), model) / width)
    n_tokens = memory_gb * 1e9 / per_token
    if len(lengths) * width / shares <= n_tokens:
        return TextChunks(None)
    working = WORKING_SHARE * n_tokens
    return TextChunks(max(1, int(working // width)), int(n_tokens - working))
