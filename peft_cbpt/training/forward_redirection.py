"""Calling another method than `forward` through a wrapper such as DDP, so that its gradient hooks run."""

from collections.abc import Callable
from typing import Any

from torch import nn


def call_through(wrapper: nn.Module, module: nn.Module, method: Callable[..., Any], *args: Any) -> Any:
    """`method(*args)`, a method of `module`, as the forward pass of `wrapper` (which may be `module` itself)."""
    if wrapper is module:
        return method(*args)
    forward = module.forward

    def redirected(*inner: Any) -> Any:
        module.forward = forward
        return method(*inner)

    module.forward = redirected
    try:
        return wrapper(*args)
    finally:
        module.forward = forward
