"""The other half of an adapter that also repairs the image tower: PEFT's own LoRA layers, beside the prompts.

They have the adapter's name, so that one file of weights holds both, and they never learn here: `purify_encoder`
trains them, and prompts are tuned on top.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from peft_cbpt.tuner.config import CBPTConfig

FOLDER = "encoder"
"""Where the update of the image tower lies beside an adapter, for those who want it alone."""
TEXT_TOWER = ("text_model", "text_projection")
_NOT_RECORDED = {"base_model_name_or_path", "inference_mode", "auto_mapping", "task_type", "peft_version", "revision"}


def encoder_config(config: CBPTConfig) -> LoraConfig:
    """The `LoraConfig` that an adapter records.

    Raises:
        ValueError: if it has settings that no `LoraConfig` has, or needs more than weights of LoRA.
    """
    try:
        lora = LoraConfig(**(config.encoder_lora or {}))
    except TypeError as error:
        raise ValueError(f"encoder_lora holds the settings of a peft.LoraConfig: {error}.") from error
    if lora.bias != "none" or lora.modules_to_save or lora.target_parameters or lora.use_dora:
        raise ValueError("encoder_lora is a plain LoRA: no bias, modules_to_save, target_parameters or DoRA.")
    return lora


def encoder_settings(lora: LoraConfig) -> dict[str, Any]:
    """What `CBPTConfig.encoder_lora` records of a trained LoRA: what is not as by default, JSON-serialisable."""
    default, settings = LoraConfig().to_dict(), lora.to_dict()
    unimportant = {
        "base_model_name_or_path",
        "inference_mode",
        "auto_mapping",
        "task_type",
        "peft_version",
        "revision",
    }
    kept = {name: value for name, value in settings.items() if name not in unimportant and value != default.get(name)}
    kept |= {"r": lora.r, "lora_alpha": lora.lora_alpha}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in kept.items()}


def check_encoder(config: CBPTConfig, model: nn.Module) -> None:
    """Raises a ValueError unless the LoRA of `config` finds layers of the image tower of `model`, and none of text."""
    lora = encoder_config(config)
    found = [name for name, _ in model.named_modules() if check_target_module_exists(lora, name)]
    if not found:
        raise ValueError("The target_modules of encoder_lora are no layers of the base model.")
    if of_text := [name for name in found if name.startswith(TEXT_TOWER)]:
        raise ValueError(
            f"encoder_lora is for the image tower, but its target_modules name {of_text[0]} too: write whole names."
        )


def lora_layers(model: nn.Module) -> Iterator[LoraLayer]:
    """The layers of `model` that have a LoRA."""
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def add_lora(model: Any, adapter_name: str, config: CBPTConfig, low_cpu_mem_usage: bool = False) -> None:
    """Puts the LoRA of an adapter into a CLIP; as it is made, it changes nothing, and it does not learn."""
    known = model.__dict__.pop("peft_config", None)  # PEFT would take it for its own
    try:
        LoraModel(model, {adapter_name: encoder_config(config)}, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
    finally:
        model.__dict__.pop("peft_config", None)
        if known is not None:
            model.peft_config = known
    for layer in lora_layers(model):
        frozen = tuple(name for name in layer.adapter_layer_names if adapter_name in getattr(layer, name))
        layer.frozen_peft_weight_names = layer.frozen_peft_weight_names | {adapter_name: frozen}
        layer._freeze_non_trainable_peft_weights(adapter_name)


def encoder_weights(model: Any, adapter_name: str) -> dict[str, Tensor]:
    """The LoRA of an adapter as a file of PEFT's has it, by name.

    Args:
        model: A `PeftModel`, or the tuner in it.
        adapter_name: The adapter.
    """
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    prefix = "" if isinstance(model, PeftModel) else "base_model."
    return {prefix + name: value for name, value in saved.items() if ".lora_" in name}


def save_encoder(model: Any, adapter_name: str, folder: Path, base: str | None = None) -> None:
    """Writes the LoRA of an adapter as an adapter of its own; see `write_lora`.

    Args:
        model: A `PeftModel`, or the tuner in it.
        adapter_name: The adapter.
        folder: Where to write; made if missing.
        base: What to call the base model.
    """
    write_lora(folder, encoder_config(model.peft_config[adapter_name]), encoder_weights(model, adapter_name), base)


def write_lora(folder: Path, config: LoraConfig, weights: Mapping[str, Tensor], base: str | None = None) -> None:
    """Writes an adapter that PEFT loads without this package, the weights last.

    Args:
        folder: Where to write; made if missing.
        config: Of the LoRA.
        weights: By the names that PEFT gives them in files.
        base: What to call the base model.
    """
    config = copy.copy(config)
    config.base_model_name_or_path, config.inference_mode = base, True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    whole = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(whole, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})


def with_encoder(purified: PeftModel, config: CBPTConfig) -> PeftModel:
    """Class-wise prompts on a purified encoder, as one adapter.

    Args:
        purified: What `purify_encoder` gives, or any LoRA on the image tower of a CLIP; its base gets the adapter.
        config: The prompts.

    Raises:
        ValueError: if the adapter in use is no LoRA of the image tower alone.
    """
    lora: Any = purified.active_peft_config
    if not isinstance(lora, LoraConfig):
        raise ValueError(f"A purified encoder has a LoRA, not {lora.peft_type.value}.")
    name: Any = purified.active_adapter
    weights = {key: value.clone() for key, value in encoder_weights(purified, name).items()}
    config.encoder_lora = encoder_settings(lora)
    base: Any = purified.unload()
    model = get_peft_model(base, config)
    adapter_name: Any = model.active_adapter
    fitting = BaseTuner._remap_adapter_state_dict_for_load.__func__(  # type: ignore[attr-defined]
        type(model.base_model), model, config, adapter_name, weights
    )
    model.load_state_dict(fitting, strict=False)
    return model.eval()


def check_lora_weights(model: nn.Module, adapter_name: str, weights: Mapping[str, Tensor]) -> None:
    """Raises a ValueError unless `weights`, by their names in `model`, are those of the LoRA of an adapter."""
    needed = {
        f"{name}.{part}.{adapter_name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        for part in ("lora_A", "lora_B")
        if adapter_name in getattr(module, part)
    }
    found = {name for name in weights if ".lora_" in name}
    if found != needed:
        raise ValueError(
            f"The checkpoint has {len(found)} weights for the image tower, but the encoder_lora of adapter "
            f"{adapter_name!r} and the base model need {len(needed)}, of which {len(needed & found)} are there."
        )


def repaired_weights(base: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The weights that the LoRA of an adapter changes, with it, by their names in the base."""
    return {
        f"{name}.weight": _merged(module, adapter_name)
        for name, module in base.named_modules()
        if isinstance(module, LoraLayer) and adapter_name in module.lora_A
    }


@torch.no_grad()
def _merged(layer: Any, adapter_name: str) -> Tensor:
    weight = layer.get_base_layer().weight
    return weight + layer.get_delta_weight(adapter_name).to(weight)
