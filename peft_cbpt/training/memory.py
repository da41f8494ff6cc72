"""How much is encoded at once, from what autograd would keep of it.

The budgets are constants and not what happens to be free: batches must not differ from run to run, or results would in
their last digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage

GIB = 2**30
TEXT_BUDGET = {"cpu": 2.2 * GIB, "cuda": 6 * GIB}
IMAGE_BUDGET = {"cpu": 1.25 * GIB, "cuda": 6 * GIB}
LARGEST_BATCH = {"cpu": 32, "cuda": 256}
"""Images inverted at once, at most."""
WORKING_SHARE = 1 / 8
"""Share of the text budget for the chunk whose activations are computed again."""


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


def image_batch_size(encode_image: EncodeImage, image: Tensor, model: torch.nn.Module) -> int:
    """How many images like `image` (1, 3, H, W) to invert at once."""
    per_image = activation_bytes(lambda: encode_image(image.clone().requires_grad_()), model)
    kind = image.device.type if image.device.type in IMAGE_BUDGET else "cpu"
    return min(LARGEST_BATCH[kind], max(1, int(IMAGE_BUDGET[kind] // max(1, per_image))))


@dataclass(frozen=True)
class TextChunks:
    """How the class prompts are encoded; see `CBPTModel.encode_class_prompts`."""

    chunk_size: int | None
    kept_tokens: int = 0


def text_chunks(model: PeftModel, device: torch.device, shares: int) -> TextChunks:
    """Chunks that keep the text tower's activations within the budget; all prompts at once if they fit.

    Args:
        model: A CLIP with a CBPT adapter.
        device: Where it is.
        shares: How many processes share the classes.
    """
    tower: Any = model
    lengths: Sequence[int] = tower.class_prompt_lengths()
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    kept = activation_bytes(lambda: tower.encode_class_prompts([longest]), model)
    per_token = max(1, kept / lengths[longest])
    budget = TEXT_BUDGET.get(device.type, TEXT_BUDGET["cpu"]) / per_token
    if sum(lengths) / (1 - 0.15) / shares <= budget:
        return TextChunks(None)
    working = WORKING_SHARE * budget
    return TextChunks(max(1, int(working // lengths[longest])), int(budget - working))
