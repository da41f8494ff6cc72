"""Hashes of weights, to tell base models apart."""

import hashlib
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PretrainedConfig

ROUNDINGS = (torch.float32, torch.float16, torch.bfloat16)
SHOWN_DIGITS = 12


class BaseMismatchWarning(UserWarning):
    """An adapter was loaded onto another base model than the one it was made for."""


_SAYS_NOT_WHAT_IS_COMPUTED = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def computation(config: PretrainedConfig) -> dict[str, Any]:
    """The settings of a config that decide what a model makes of its weights, such as the activation."""

    def kept(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: kept(value) if isinstance(value, Mapping) else value
            for name, value in settings.items()
            if name not in _SAYS_NOT_WHAT_IS_COMPUTED
        }

    return kept(config.to_dict())


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model by the names it has without adapters, which are left out."""
    adapters = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if not name.startswith(adapters) or ".base_layer." in name
    }


def encoder_fingerprint(model: nn.Module) -> str:
    """SHA-256 as `weights_fingerprint`, of all that images' features depend on: adapters too, but for context."""
    weights = {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if "cbpt_" not in name and value.is_floating_point()
    }
    return tensors_fingerprint(weights)


def weights_fingerprint(model: nn.Module, rounding: torch.dtype = torch.float32) -> str:
    """SHA-256 over names and float32 values of a model's weights, adapters left out.

    The same for any files the weights are stored in (format, shards, order), on any device, and for the same values
    held in another dtype. Buffers such as the running statistics of batch norm count, integers do not.

    Args:
        model: The model, with or without adapters.
        rounding: Round the values to this dtype first, as loading with `dtype=rounding` does.

    Returns:
        64 hexadecimal digits.
    """
    weights = {name: value for name, value in base_state(model).items() if value.is_floating_point()}
    return tensors_fingerprint(weights, rounding)


def tensors_fingerprint(tensors: Mapping[str, Tensor], rounding: torch.dtype = torch.float32) -> str:
    """SHA-256 over the SHA-256 of every tensor's name, shape and float32 values, in the order of the names."""

    def digest(name: str) -> bytes:
        value = tensors[name].detach().to(rounding).to("cpu", torch.float32).contiguous()
        hashed = hashlib.sha256(f"{name}{tuple(value.shape)}".encode())
        hashed.update(value.reshape(-1).numpy().view("uint8").data)
        return hashed.digest()

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashlib works without the interpreter lock
        return hashlib.sha256(b"".join(threads.map(digest, sorted(tensors)))).hexdigest()


def base_fingerprints(model: nn.Module) -> dict[str, str]:
    """The fingerprint of a model as it is, and of its copies in half precision, by dtype."""
    return {str(dtype).removeprefix("torch."): weights_fingerprint(model, dtype) for dtype in ROUNDINGS}


def check_base_fingerprint(config: Any, model: nn.Module) -> None:
    """See that `model` is the base that the adapter of `config` was made for.

    A copy in half precision passes. Nothing is checked for a config without `base_fingerprint`, or while weights of
    the model are on the meta device.

    Warns:
        BaseMismatchWarning: if it is another model.

    Raises:
        ValueError: in that case, with `config.strict`.
    """
    recorded = config.base_fingerprint
    if not recorded or any(parameter.is_meta for parameter in model.parameters()):
        return
    found = weights_fingerprint(model)
    if found in recorded.values():
        return
    made_for = config.base_model_name_or_path or "a model without a name"
    given = getattr(model, "name_or_path", "") or f"a {type(model).__name__} without a name"
    message = (
        f"This adapter was made for {made_for} (weights {recorded['float32'][:SHOWN_DIGITS]}), but is loaded onto "
        f"{given} (weights {found[:SHOWN_DIGITS]}): what was measured with it does not hold here. Load it onto the "
        "model it was made for."
    )
    if config.strict:
        raise ValueError(message)
    warnings.warn(message, BaseMismatchWarning, stacklevel=2)
