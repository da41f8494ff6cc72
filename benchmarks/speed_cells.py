"""What benchmarks/speed.py measures; every function is one cell and returns what is stored."""

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import straightforward
from benchmarks.speed_shapes import attach_prompts, build_clip
from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder, prefer_channels_last
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.evaluation import accuracy, attack_result, encode_images
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.purification.inversion import InversionSettings, invert_triggers
from peft_cbpt.purification.losses import ObjectiveWeights, purification_objective
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import CBPTTrainer
from peft_cbpt.training.class_shares import SharedClassEncoder
from peft_cbpt.training.memory import image_batch_size
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.buckets import length_buckets

EPOCHS, WARMUP, SHOTS, BATCH, STEPS = 20, 5, 16, 32, 10
LINF = {"target": "runner_up", "norm": math.inf, "inversion_step_rule": "sign", "inversion_lr": 2 / 255}
BUDGET = InversionSettings(norm=math.inf, lr=2 / 255, step_rule="sign")
TEXT_CLASSES_STRAIGHTFORWARD = 100
"""The straightforward text tower is timed on at most so many classes (77,000 tokens do not fit) and scaled."""


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


def pocket(quick: bool) -> dict:
    """The whole purification of the pocket CLIP by both, on the same batches."""
    num_classes, shots, epochs, warmup = (6, 4, 4, 1) if quick else (60, SHOTS, EPOCHS, WARMUP)
    names = class_names()[:num_classes]
    if "banana" not in names:
        names = [*names[:-1], "banana"]
    clip = load_clip(resolve_model("pocket:badnet"))
    train, test = (
        LabelledImages(pocket_dataset("base", split, n, names), clip.image_processor)
        for split, n in (("train", shots), ("test", 5 if quick else 20))
    )
    torch.manual_seed(0)
    model = get_adapter(clip, names)
    context = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    start_context = context.detach().clone()
    batches: list[list[int]] = []
    seconds: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        arguments = CBPTTrainingArguments(
            output_dir=folder,
            cache_dir=f"{folder}/cache",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            num_train_epochs=epochs,
            warmup_epochs=warmup,
            **LINF,
        )
        trainer = CBPTTrainer(model, arguments, train, clip.normalize)
        compute_loss = trainer.compute_loss

        def noted(wrapped, inputs, **kwargs):
            batches.append(inputs["rows"].tolist())
            return compute_loss(wrapped, inputs, **kwargs)

        trainer.compute_loss = noted
        begin = time.perf_counter()
        with timed(trainer, "_gather_inversions", seconds), timed(trainer, "_encode_classes", seconds):
            trainer.train()
        ours = time.perf_counter() - begin
        epochs_logged = [entry for entry in trainer.state.log_history if "cache_hit_rate" in entry]
        pairs = len(trainer.inverter.store)
    images, labels = trainer._to_invert, torch.tensor(trainer._to_invert.samples.labels)
    per_epoch = len(batches) // epochs
    by_epoch = [batches[first : first + per_epoch] for first in range(0, len(batches), per_epoch)]
    config = model.peft_config["default"]
    plain = load_clip(resolve_model("pocket:badnet")).model.requires_grad_(False)
    learner = straightforward.PromptLearner(
        plain, config.class_token_ids, config.bos_token_id, config.eos_token_id, start_context
    )
    settings = straightforward.Settings(epochs=epochs, warmup_epochs=warmup)
    begin = time.perf_counter()
    expected = straightforward.purify(plain, learner, images.load, labels, by_epoch, settings)
    theirs = time.perf_counter() - begin
    attack = read_attack("pocket:badnet")
    encoded = encode_images(
        image_encoder(clip.model, clip.normalize), test, {"badnet": attack.trigger}, torch.device("cpu")
    )

    def figures(text: torch.Tensor) -> dict:
        target = names.index(attack.target_class)
        result = attack_result(encoded.triggered["badnet"], encoded.labels, text, target)
        clean = accuracy(encoded.clean, encoded.labels, text)
        return {"clean_accuracy": clean, "attack_success_rate": result.attack_success_rate}

    with torch.no_grad():
        after = {
            "ours": figures(model.encode_class_prompts()),
            "straightforward": figures(straightforward.encode_text(plain, learner)),
        }
    stages = {"inversion": seconds["_gather_inversions"], "text tower forward": seconds["_encode_classes"]}
    return {
        "classes": num_classes,
        "images": len(labels),
        "epochs": epochs,
        "seconds": {"ours": ours, "straightforward": theirs},
        "times_faster": theirs / ours,
        "seconds_by_stage": stages | {"all else": ours - sum(stages.values())},
        "largest_context_difference": (context.detach() - expected).abs().max().item(),
        "after": after,
        "pairs_per_image": pairs / len(labels),
        "cache_hit_rate": [entry["cache_hit_rate"] for entry in epochs_logged],
        "peak_bytes_both": peak_bytes(),
    }


def get_adapter(clip, names):
    """An adapter on a loaded pocket CLIP."""
    from peft import get_peft_model

    return get_peft_model(clip.model, CBPTConfig(class_names=names).tokenize(clip.tokenizer))


def _our_step(model, n: int, width: int) -> Callable[[], object]:
    """One outer step on a batch of looked-up features."""
    context = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    optimizer = torch.optim.SGD([context], lr=2e-3, momentum=0.9)
    encode = SharedClassEncoder(model, 0, torch.device("cpu"), None)
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


def shape(name: str, quick: bool, pairs_per_image: float) -> dict:
    """Both loops on a published shape, from timed steps; see docs/performance.md for the sums."""
    clip = build_clip(name, small=quick)
    batch, repeats = (2, 1) if quick else (BATCH, 2)
    side = clip.vision_model.config.image_size
    images = torch.rand(batch, 3, side, side)
    width = clip.config.projection_dim
    positives, negatives = torch.nn.functional.normalize(torch.randn(2, batch, width), dim=-1)
    scale = BATCH / batch
    plain = straightforward.Settings()

    def per_batch(work: Callable[[], object]) -> float:
        return scale * seconds_of(work, repeats)

    with torch.no_grad():
        clean_seconds = per_batch(lambda: straightforward.encode_image(clip, images))
        flops_forward = flops_of(lambda: straightforward.encode_image(clip, images)) / batch
    invert_seconds = per_batch(lambda: straightforward.invert(clip, images, positives, negatives, plain))
    flops_inversion = flops_of(lambda: straightforward.invert(clip, images, positives, negatives, plain)) / batch
    prefer_channels_last(clip.vision_model)
    encoder = image_encoder(clip, PixelNormalizer())
    own_batch = min(batch, 2) if quick else image_batch_size(encoder, images[:1], clip)
    own = images[:1].expand(own_batch, -1, -1, -1).contiguous()
    goal = positives[:1].expand(own_batch, -1)

    def invert_ours() -> torch.Tensor:
        delta = invert_triggers(encoder, own, goal, -goal, BUDGET)
        with torch.no_grad():
            return encoder(own + delta)

    our_image_seconds = seconds_of(invert_ours, repeats) / own_batch
    cells = []
    for n in (4, 10) if quick else (10, 100, 1000):
        cells.append(
            _totals(clip, name, n, repeats, width, clean_seconds, invert_seconds, our_image_seconds, pairs_per_image)
            | _flops(clip, n, width, flops_forward, flops_inversion, pairs_per_image)
        )
        print(f"{name}, {n} classes: {cells[-1]['times_faster']:.1f} times faster", flush=True)
    return {"shape": name, "own_inversion_batch": own_batch, "pairs_per_image": pairs_per_image, "cells": cells}


def _plain_step(clip, model, n: int) -> Callable[[], object]:
    timed_classes = min(n, TEXT_CLASSES_STRAIGHTFORWARD)
    config = model.peft_config["default"]
    context = next(parameter for parameter in model.parameters() if parameter.requires_grad).detach()[:timed_classes]
    learner = straightforward.PromptLearner(
        clip, config.class_token_ids[:timed_classes], config.bos_token_id, config.eos_token_id, context
    )
    return lambda: straightforward.encode_text(clip, learner).sum().backward()


def _totals(clip, name, n, repeats, width, clean, invert, own_image, pairs) -> dict:
    model = attach_prompts(clip, n)
    step_ours = seconds_of(_our_step(model, n, width), repeats)
    plain_text = seconds_of(_plain_step(clip, model, n), repeats) * n / min(n, TEXT_CLASSES_STRAIGHTFORWARD)
    model.unload()
    n_images, steps = SHOTS * n, math.ceil(SHOTS * n / BATCH)
    straight = {
        "text tower": EPOCHS * steps * plain_text,
        "clean images": EPOCHS * steps * clean,
        "inversion": (EPOCHS - WARMUP) * steps * (invert + clean),
    }
    ours = {
        "text tower": EPOCHS * steps * step_ours,
        "clean images": n_images * clean / BATCH,
        "inversion": n_images * pairs * own_image,
    }
    totals = {"straightforward": sum(straight.values()), "ours": sum(ours.values())}
    return {
        "classes": n,
        "seconds_extrapolated": totals,
        "times_faster": totals["straightforward"] / totals["ours"],
        "seconds_by_stage": {"straightforward": straight, "ours": ours},
        "timed": {"outer step": step_ours, "straightforward text step": plain_text, "clean batch": clean,
                  "straightforward inversion of a batch": invert, "own inversion of an image": own_image},
        "straightforward_text_timed_on": min(n, TEXT_CLASSES_STRAIGHTFORWARD),
    }  # fmt: skip


def _flops(clip, n, width, forward, inversion, pairs) -> dict:
    model = attach_prompts(clip, n)
    lengths = model.class_prompt_lengths()
    done_text = flops_of(_our_step(model, n, width))
    with torch.no_grad():
        one = flops_of(lambda: model.encode_class_prompts([0]))
    model.unload()
    per_token = one / lengths[0]
    needed_text = 2 * per_token * sum(lengths)
    filled = sum(len(group) * max(lengths[index] for index in group) for group in length_buckets(lengths))
    steps, n_images = EPOCHS * math.ceil(SHOTS * n / BATCH), SHOTS * n
    images = n_images * (forward + pairs * (inversion + forward))
    straight = n_images * (EPOCHS * forward + (EPOCHS - WARMUP) * (inversion + forward))
    straight += steps * 2 * per_token * straightforward.CONTEXT_LENGTH * n
    return {
        "flops": {"straightforward": straight, "ours": images + steps * done_text,
                  "needed": images + steps * needed_text},
        "padding": 1 - sum(lengths) / filled,
    }  # fmt: skip


def memory(quick: bool) -> dict:
    """Peak memory of one outer step and one batch of inversions on ImageNet's shape."""
    clip = build_clip("rn50", small=quick)
    prefer_channels_last(clip.vision_model)
    n, side = (20 if quick else 1000), clip.vision_model.config.image_size
    encoder = image_encoder(clip, PixelNormalizer())
    images = torch.rand(2, 3, side, side)
    batch = min(BATCH, 2 if quick else image_batch_size(encoder, images[:1], clip))
    own = images[:1].expand(batch, -1, -1, -1).contiguous()
    model = attach_prompts(clip, n)
    step = _our_step(model, n, clip.config.projection_dim)
    before = peak_bytes()
    text = SharedClassEncoder(model, 0, torch.device("cpu"), None)(model)  # alive while images are inverted
    goal = text[:1].detach().expand(batch, -1)
    invert_triggers(encoder, own, goal, -goal, BUDGET)
    del text
    step()
    return {"classes": n, "inversion_batch": batch, "peak_bytes": peak_bytes(), "peak_bytes_before": before}


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
    """One process with one and with all threads, against two processes with one thread each."""
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    threads = str(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "one process, one thread": _purify(Path(folder) / "a", _size(quick), [], OMP_NUM_THREADS="1"),
            "one process, all threads": _purify(Path(folder) / "b", _size(quick), [], OMP_NUM_THREADS=threads),
            "two processes, one thread each": _purify(
                Path(folder) / "c", [*_size(quick), "--per_device_train_batch_size", "16"], two, OMP_NUM_THREADS="1"
            ),
        }
    contexts = [context for _, context in runs.values()]
    difference = max((context - contexts[0]).abs().max().item() for context in contexts)
    return {
        "seconds": {name: seconds for name, (seconds, _) in runs.items()},
        "largest_context_difference": difference,
    }


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
