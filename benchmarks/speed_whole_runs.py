"""The cells of benchmarks/speed.py that time whole runs of ours, and the one on a GPU."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from benchmarks.speed_shapes import attach_prompts, build_clip
from benchmarks.speed_timing import EPOCHS, SHOTS, WARMUP
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import CBPTTrainer


def purify_run(
    folder: Path, options: dict[str, Any], launch: Sequence[str] = (), **environment: str
) -> tuple[float, torch.Tensor]:
    """Seconds of a purification in processes of its own, and the context it learns."""
    job = {"model_name_or_path": "pocket:badnet", "dataset_name": "pocket:base", "use_cpu": True, "only": "prompts"}
    job |= {"test_images_per_class": 2, "disable_tqdm": True} | options
    job |= {"output_dir": str(folder), "feature_cache_dir": str(folder / "cache")}
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(job))
    command = [sys.executable, *launch, "-m", "peft_cbpt", "purify", "--config", str(config)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    (context,) = load_file(folder / "adapter_model.safetensors").values()
    return json.loads((folder / "results.json").read_text())["seconds"]["purify"], context


def pocket_size(quick: bool) -> dict[str, Any]:
    """The pocket job, in full or in small."""
    values = (4, 2, 2, 1) if quick else (60, SHOTS, EPOCHS, WARMUP)
    return dict(zip(("num_classes", "num_shots", "num_train_epochs", "warmup_epochs"), values, strict=True))


class GeneratedImages(torch.utils.data.Dataset):
    """Random images, `SHOTS` a class, the same at every look."""

    def __init__(self, num_classes: int, side: int):
        self.length, self.side = SHOTS * num_classes, side

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> dict:
        coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(row))
        pixels = torch.nn.functional.interpolate(coarse, (self.side, self.side), mode="bilinear")[0]
        return {"pixel_values": (255 * pixels).to(torch.uint8), "labels": row // SHOTS, "sample_id": str(row)}


def gpu(quick: bool) -> dict:
    """ImageNet's shape end to end: RN50 with random weights, generated images, 20 epochs, inversions in bf16."""
    n = 10 if quick else 1000
    clip = build_clip("rn50", small=quick)
    model = attach_prompts(clip, n)
    with tempfile.TemporaryDirectory() as folder:
        arguments = CBPTTrainingArguments(
            output_dir=folder,
            feature_cache_dir=f"{folder}/cache",
            disable_tqdm=True,
            inversion_dtype="bf16",
            dummy_triggers="runner_up",
        )
        start = time.perf_counter()
        trainer = CBPTTrainer(model, arguments, GeneratedImages(n, clip.vision_model.config.image_size))
        trainer.train()
        seconds = time.perf_counter() - start
        inversions = [entry["inversions"] for entry in trainer.state.log_history if "inversions" in entry]
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "classes": n,
        "seconds": seconds,
        "gpu_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "inversions": inversions,
    }
