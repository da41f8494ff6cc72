"""The cells of benchmarks/speed.py that time whole runs of ours: memory kept, processes, and a GPU."""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.speed_shapes import attach_prompts, build_clip
from benchmarks.speed_timing import EPOCHS, LINF, SHOTS, WARMUP
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import CBPTTrainer


def _purify(folder: Path, options: list[str], launch: list[str], **environment: str) -> tuple[float, torch.Tensor]:
    job = ["--model_name_or_path", "pocket:badnet", "--dataset_name", "pocket:base", "--norm", "inf", "--use_cpu"]
    job += ["--inversion_step_rule", "sign", "--inversion_lr", "0.00784313725490196", "--disable_tqdm", "true"]
    job += [
        "--test_images_per_class",
        "2",
        "--output_dir",
        str(folder),
        "--cache_dir",
        str(folder / "cache"),
        *options,
    ]
    subprocess.run([sys.executable, *launch, "-m", "peft_cbpt", "purify", *job], check=True, stdout=subprocess.DEVNULL,
                   env=os.environ | environment)  # fmt: skip
    (context,) = load_file(folder / "adapter_model.safetensors").values()
    return json.loads((folder / "results.json").read_text())["seconds"]["purify"], context


def _size(quick: bool) -> list[str]:
    values = (4, 2, 2, 1) if quick else (60, SHOTS, EPOCHS, WARMUP)
    names = ("--num_classes", "--num_shots", "--num_train_epochs", "--warmup_epochs")
    return [word for name, value in zip(names, values, strict=True) for word in (name, str(value))]


def malloc(quick: bool) -> dict:
    """The pocket run with glibc's default thresholds, and with memory kept instead of given back."""
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
    with tempfile.TemporaryDirectory() as folder:
        default, one = _purify(Path(folder) / "default", _size(quick), [])
        tuned, two = _purify(Path(folder) / "tuned", _size(quick), [], **kept)
    return {"seconds": {"default": default, "kept": tuned}, "environment": kept, "same": torch.equal(one, two)}


def processes(quick: bool) -> dict:
    """One process with one and with all threads, two processes with one thread each, and what the machine allows.

    The last is two runs of one process and one thread that have nothing to do with each other, at the same time.
    """
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    threads = str(os.cpu_count() or 1)
    targets = {}
    for target in ("suspected", "runner_up"):
        options = [*_size(quick), "--target", target]
        with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
            folder = Path(name)
            runs = {
                "one process, one thread": _purify(folder / "a", options, [], OMP_NUM_THREADS="1"),
                "one process, all threads": _purify(folder / "b", options, [], OMP_NUM_THREADS=threads),
                "two processes, one thread each": _purify(
                    folder / "c", [*options, "--per_device_train_batch_size", "16"], two, OMP_NUM_THREADS="1"
                ),
            }
            at_once = [pool.submit(_purify, folder / one, options, [], OMP_NUM_THREADS="1") for one in "de"]
            slower = max(run.result()[0] for run in at_once)
        contexts = [context for _, context in runs.values()]
        targets[target] = {
            "seconds": {name: seconds for name, (seconds, _) in runs.items()} | {"two such runs at once": slower},
            "largest_context_difference": max((context - contexts[0]).abs().max().item() for context in contexts),
        }
    return {"targets": targets}


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
            output_dir=folder, cache_dir=f"{folder}/cache", disable_tqdm=True, inversion_dtype="bf16", **LINF
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
