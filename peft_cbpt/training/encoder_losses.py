"""What a purified image encoder f' is asked for, beside the frozen original f (features are unit-norm)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


def moved(features: Tensor, originals: Tensor) -> Tensor:
    """Mean `1 - cos(f'(v), f(v))` of features (B, D): a number in [0, 2]."""
    return 1 - (features * originals).sum(1).mean()


@contextmanager
def update_shares(model: nn.Module, adapter_name: str, count: int) -> Iterator[list[Tensor]]:
    """Of the first `count` images of a pass made within, `|B A x|^2 / |W x|^2` at every layer with a LoRA.

    Features alone can be held on the images at hand while layers learn to compute something else of all others. What
    layers see of an image are hundreds of patches, which kinds of images share more than they share features.

    Args:
        model: With a LoRA; the first dimension of what its layers give must be the images.
        adapter_name: The LoRA.
        count: Images.

    Yields:
        A list that the pass fills with scalars, which have a gradient to the update only.
    """
    shares: list[Tensor] = []
    handles = []

    def watch(layer: Any) -> None:
        whole: list[Tensor] = []

        def see_base(_: nn.Module, inputs: Any, output: Tensor) -> None:
            whole[:] = [output[:count].detach().float().square().mean()]

        def see_update(_: nn.Module, inputs: Any, output: Tensor) -> None:
            update = output[:count].float().square().mean()
            shares.append(update / whole[0].clamp(min=torch.finfo(torch.float32).tiny))

        handles.append(layer.get_base_layer().register_forward_hook(see_base))
        handles.append(layer.lora_B[adapter_name].register_forward_hook(see_update))

    for module in model.modules():
        if isinstance(module, LoraLayer):
            watch(module)
    try:
        yield shares
    finally:
        for handle in handles:
            handle.remove()
