"""The text tower over all classes, each process encoding its share of them."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from peft_cbpt.common.processes import gather_rows, num_processes
from peft_cbpt.training.forward_redirection import call_through
from peft_cbpt.training.memory import TextChunks, text_chunks


class SharedClassEncoder:
    """Unit-norm features of all class prompts, with a gradient to the context.

    Prompts are dealt out by length, so that every process has as many tokens to encode. With fewer classes than
    processes each encodes all.

    Args:
        model: The unwrapped CLIP with its CBPT adapter.
        rank: Number of this process.
        device: Where the model is.
        memory_gb: Bound of the activations that are kept for the backward pass; what exceeds it is computed again.
    """

    def __init__(self, model: Any, rank: int, device: torch.device, memory_gb: float):
        self.model, self.rank, self.device, self.memory_gb = model, rank, device, memory_gb

    @cached_property
    def _shares(self) -> list[list[int]] | None:
        lengths, n_shares = self.model.class_prompt_lengths(), num_processes()
        if n_shares == 1 or len(lengths) < n_shares:
            return None
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        return [by_length[first::n_shares] for first in range(n_shares)]

    @cached_property
    def _places(self) -> Tensor:
        assert self._shares is not None
        return torch.tensor([index for share in self._shares for index in share], device=self.device).argsort()

    @cached_property
    def _chunks(self) -> TextChunks:
        return text_chunks(self.model, self.memory_gb, len(self._shares or [0]))

    def __call__(self, wrapped: nn.Module) -> Tensor:
        """Features (n_classes, D), the same on every process; all must call, through their wrapper (DDP or none)."""
        own = None if self._shares is None else self._shares[self.rank]
        chunks = self._chunks
        arguments = (own, chunks.chunk_size, (), chunks.kept_tokens)
        features: Tensor = call_through(wrapped, self.model, self.model.encode_class_prompts, *arguments)
        if self._shares is None:
            return features
        return gather_rows(features, [len(share) for share in self._shares])[self._places]
