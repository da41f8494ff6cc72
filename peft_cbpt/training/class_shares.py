"""The text tower over all classes, each process encoding its share of them."""

from collections.abc import Sequence
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
    def _lengths(self) -> list[int]:
        lengths: list[int] = self.model.class_prompt_lengths()
        return lengths

    def _shares(self, classes: Sequence[int]) -> list[list[int]] | None:
        n_shares = num_processes()
        if n_shares == 1 or len(classes) < n_shares:
            return None
        by_length = sorted(classes, key=self._lengths.__getitem__, reverse=True)
        return [by_length[first::n_shares] for first in range(n_shares)]

    @cached_property
    def _chunks(self) -> TextChunks:
        n_shares = num_processes()
        return text_chunks(self.model, self.memory_gb, 1 if len(self._lengths) < n_shares else n_shares)

    def __call__(self, wrapped: nn.Module, classes: Sequence[int] | None = None) -> Tensor:
        """Features (n, D) of some classes, or all, in their order and the same on every process.

        All processes must call, through their wrapper (DDP or none).
        """
        wanted = range(len(self._lengths)) if classes is None else classes
        shares = self._shares(wanted)
        own = classes if shares is None else shares[self.rank]
        chunks = self._chunks
        arguments = (own, chunks.chunk_size, (), chunks.kept_tokens)
        features: Tensor = call_through(wrapped, self.model, self.model.encode_class_prompts, *arguments)
        if shares is None:
            return features
        dealt = torch.tensor([one for share in shares for one in share])
        place = torch.empty(len(self._lengths), dtype=torch.int64).index_copy(0, dealt, torch.arange(len(dealt)))
        return gather_rows(features, [len(share) for share in shares])[place[list(wanted)].to(features.device)]
