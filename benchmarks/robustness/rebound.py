"""Rebound: does the backdoor come back when somebody fine-tunes the defended model on clean pairs?"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from peft import get_peft_model
from transformers import TrainerCallback, set_seed

from benchmarks.robustness.defences import Defended
from benchmarks.robustness.planted import measured
from benchmarks.robustness.world import World
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.training.encoder_lora import image_tower_lora
from peft_cbpt.training.finetune import FinetuneArguments, finetune_clip

WAYS = ("all weights", "projections", "LoRA")
EPOCHS = (1, 2, 5)
RANK = 8
SETTINGS = {"num_pairs": 1600, "num_epochs": max(EPOCHS), "batch_size": 64, "learning_rate": 5e-4, "warmup_steps": 10}


def rebound(model: str, defended: Defended, world: World, seed: int) -> dict[str, Any]:
    """Figures by way and epoch of one training each; prompts stay as they are, on the weights as they become."""
    return {way: _tuned(way, model, defended, world, seed) for way in WAYS}


def _tuned(way: str, model: str, defended: Defended, world: World, seed: int) -> dict[str, Any]:
    clip = replace(defended.clip, model=copy.deepcopy(defended.clip.model))
    plain = prepared(way, clip, seed)
    figures: dict[str, Any] = {}

    class Measuring(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if (epoch := round(state.epoch)) in EPOCHS:
                now = Defended(replace(clip, model=plain()), defended.prompts)
                figures[str(epoch)] = measured(model, now, world)

    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = SETTINGS | world.pairs | {"seed": seed, "output_dir": folder}
        arguments = FinetuneArguments(model_name_or_path="the defended model", method="ft", **options)
        finetune_clip(clip, arguments, [Measuring()])
    return figures


def prepared(way: str, clip: LoadedCLIP, seed: int) -> Callable[[], Any]:
    """Let only the weights of a way be trained; returns what gives a copy of the CLIP as it is, without adapters."""
    if way == "LoRA":
        set_seed(seed)
        tuned = get_peft_model(clip.model, image_tower_lora(clip.model, RANK))
        return lambda: copy.deepcopy(tuned).merge_and_unload()
    if way == "projections":
        pooling = ("visual_projection", "text_projection", "c_proj")
        for name, weight in clip.model.named_parameters():
            weight.requires_grad_(any(part in name for part in pooling))
    return lambda: copy.deepcopy(clip.model)
