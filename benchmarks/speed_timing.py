"""Stopwatches and counters of benchmarks/speed.py, and the job that both loops run."""

import resource
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from peft_cbpt.method.inversion import InversionSettings
from peft_cbpt.method.losses import ObjectiveWeights, purification_objective
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.class_shares import SharedClassEncoder

EPOCHS, WARMUP, SHOTS, BATCH, STEPS = 20, 5, 16, 32, 10
MEMORY_GB = CBPTTrainingArguments.activation_memory_gb
BUDGET = InversionSettings()
"""The paper's. Sign steps would turn rounding into steps of another sign, and no two loops would agree."""


def peak_bytes() -> int:
    """Largest resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """The least of some repetitions after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def flops_of(work: Callable[[], object]) -> int:
    """Multiply-adds count as two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@contextmanager
def timed(owner: object, name: str, seconds: Counter):
    """Add up the time spent in `owner.name`."""
    inner = getattr(owner, name)

    def outer(*args, **kwargs):
        start = time.perf_counter()
        result = inner(*args, **kwargs)
        seconds[name] += time.perf_counter() - start
        return result

    setattr(owner, name, outer)
    yield
    setattr(owner, name, inner)


def our_step(model, n: int, width: int) -> Callable[[], object]:
    """One outer step on a batch of looked-up features."""
    context = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    optimizer = torch.optim.SGD([context], lr=2e-3, momentum=0.9)
    encode = SharedClassEncoder(model, 0, torch.device("cpu"), MEMORY_GB)
    clean, perturbed = torch.nn.functional.normalize(torch.randn(2, BATCH, width), dim=-1)
    labels, targets = torch.arange(BATCH) % n, (torch.arange(BATCH) + 1) % n

    def step() -> None:
        text = encode(model)
        loss, _ = purification_objective(
            100 * clean @ text.T, 100 * perturbed @ text.T, labels, targets, ObjectiveWeights()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
