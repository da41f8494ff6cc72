"""Work that is shared by the processes of one run; with one process every function gives back what it is given."""

from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn


def join_processes() -> PartialState:
    """Let the processes of a run know each other; without a GPU accelerate does so only if told that there is none."""
    return PartialState(cpu=not torch.accelerator.is_available())


def leave_processes() -> None:
    """End what `join_processes` began, once nothing more is to be shared.

    A process that exits in its process group may abort: gloo's threads let go of Python objects after the interpreter
    has begun to end, which kills it with SIGABRT although its work is done. After an error of one process the others
    may still share something, and leaving could wait for them: then let the launcher end them all.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers, such as batch norm's statistics, which no gradient makes equal."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def num_processes() -> int:
    """How many processes the run has."""
    return PartialState().num_processes


def process_index() -> int:
    """Which of them this one is, from 0."""
    return PartialState().process_index


def own_share(items: Tensor) -> Tensor:
    """The consecutive part of `items` (N, ...) that is this process's to work on; shares differ by one at most."""
    state = PartialState()
    return items.tensor_split(state.num_processes)[state.process_index]


def from_all_processes(value: Any) -> list[Any]:
    """What every process passed, in the order of processes. All of them must call."""
    return gather_object([value]) if num_processes() > 1 else [value]


def any_process(flag: bool) -> bool:
    """Whether any process passed true. All of them must call."""
    state = PartialState()
    if state.num_processes == 1:
        return flag
    raised = torch.tensor(float(flag), device=state.device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised.item())


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        shares = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(shares, padded)
        return torch.cat([share[:size] for share, size in zip(shares, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.sizes)[ctx.rank], None, None


def gather_rows(own: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all processes one after the other, with a gradient.

    Every process's loss depends on all rows, so the gradient of a row is the sum over processes; wrapped in DDP,
    which takes the mean over processes, a parameter gets the gradient of the mean loss.

    Args:
        own: This process's rows, (sizes[rank], D).
        sizes: How many rows each process has.

    Returns:
        (sum(sizes), D), the same on every process.
    """
    state = PartialState()
    if state.num_processes == 1:
        return own
    gathered: Tensor = _GatherRows.apply(own, sizes, state.process_index)
    return gathered


def is_main_process() -> bool:
    """Whether this is the process that writes files."""
    return PartialState().is_main_process
