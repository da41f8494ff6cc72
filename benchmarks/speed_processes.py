"""The cell of benchmarks/speed.py that compares one process with two."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from benchmarks.speed_whole_runs import pocket_size, purify_run
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.pocket.model import resolve_model, save_clip_folder

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def _vit_b32(folder: Path) -> str:
    """A CLIP of ViT-B/32's shape with random weights, for the pocket CLIP's tokens."""
    pocket = load_clip(resolve_model("pocket:badnet"))
    words = pocket.model.config.text_config
    tokens = {name: getattr(words, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    save_clip_folder(folder, CLIPModel(CLIPConfig(text_config=tokens)), pocket.tokenizer, CLIPImageProcessorPil())
    return str(folder)


def _compare(options: dict[str, Any], batch_size: int) -> dict:
    whole = options | {"per_device_train_batch_size": batch_size}
    shared = options | {"per_device_train_batch_size": batch_size // 2}
    one, every = {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        runs = {
            "one process, one thread": purify_run(folder / "a", whole, **one),
            "one process, all threads": purify_run(folder / "b", whole, **every),
            "two processes, one thread each": purify_run(folder / "c", shared, TORCHRUN, **one),
        }
        at_once = [pool.submit(purify_run, folder / copy, whole, **one) for copy in "de"]
        slower = max(run.result()[0] for run in at_once)
    contexts = [context for _, context in runs.values()]
    return {
        "seconds": {name: seconds for name, (seconds, _) in runs.items()} | {"two such runs at once": slower},
        "largest_context_difference": max((context - contexts[0]).abs().max().item() for context in contexts),
    }


def processes(quick: bool) -> dict:
    """One process with one and with all threads, two processes with one thread each, and what the machine allows.

    The last is two runs of one process and one thread that have nothing to do with each other, at the same time. The
    pocket CLIP is so small that an outer step is mostly calls; a short job of ViT-B/32's shape shows what a CLIP of
    common size gains.
    """
    small = {"num_classes": 4, "num_shots": 2 if quick else 4, "num_train_epochs": 2, "warmup_epochs": 1}
    with tempfile.TemporaryDirectory() as folder:
        large = small | {"dummy_triggers": "runner_up", "model_name_or_path": _vit_b32(Path(folder))}
        jobs = {
            "pocket, default": (pocket_size(quick), 32),
            "pocket, runner_up": (pocket_size(quick) | {"dummy_triggers": "runner_up"}, 32),
            "ViT-B/32, target runner_up": (large, 2 if quick else 8),
        }
        return {"jobs": {name: _compare(*job) for name, job in jobs.items()}}
