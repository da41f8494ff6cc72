"""The cells of benchmarks/speed.py that take published shapes with random weights: steps timed and multiplied out."""

import math
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import straightforward
from benchmarks.speed_shapes import attach_prompts, build_clip
from benchmarks.speed_timing import (
    BATCH,
    BUDGET,
    EPOCHS,
    MEMORY_GB,
    SHOTS,
    WARMUP,
    flops_of,
    our_step,
    peak_bytes,
    seconds_of,
)
from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder, prefer_channels_last
from peft_cbpt.method.inversion import invert_triggers
from peft_cbpt.training.class_shares import SharedClassEncoder
from peft_cbpt.training.memory import image_batch_size
from peft_cbpt.tuner.prompts import length_groups

TEXT_CLASSES_STRAIGHTFORWARD = 100
"""The straightforward text tower is timed on at most so many classes (77,000 tokens do not fit) and scaled."""


def shape(name: str, quick: bool, pairs_per_image: float) -> dict:
    """Both loops on a published shape, from timed steps; see docs/performance.md for the sums."""
    clip = build_clip(name, small=quick)
    batch, repeats = (2, 1) if quick else (BATCH, 2)
    side = clip.vision_model.config.image_size
    images = torch.rand(batch, 3, side, side)
    width = clip.config.projection_dim
    positives, negatives = torch.nn.functional.normalize(torch.randn(2, batch, width), dim=-1)
    scale = BATCH / batch
    plain = straightforward.Settings(step_size=BUDGET.lr, epsilon=BUDGET.epsilon, sign=False)

    def per_batch(work: Callable[[], object]) -> float:
        return scale * seconds_of(work, repeats)

    with torch.no_grad():
        clean = per_batch(lambda: straightforward.encode_image(clip, images))
    invert = per_batch(lambda: straightforward.invert(clip, images, positives, negatives, plain))
    flops = {"straightforward": _image_flops(
        lambda few: straightforward.encode_image(clip, few),
        lambda few: straightforward.invert(clip, few, positives[:1], negatives[:1], plain), images,
    )}  # fmt: skip
    prefer_channels_last(clip.vision_model)
    encoder = image_encoder(clip, PixelNormalizer())
    own_batch = min(batch, 2) if quick else image_batch_size(encoder, images[:1], clip, BATCH, MEMORY_GB)
    own = images[:1].expand(own_batch, -1, -1, -1).contiguous()

    def invert_ours(images: torch.Tensor) -> torch.Tensor:
        goal = positives[:1].expand(len(images), -1)
        return invert_triggers(encoder, images, goal, -goal, BUDGET)

    def invert_and_encode() -> None:
        delta = invert_ours(own)
        with torch.no_grad():
            encoder(own + delta)

    with torch.no_grad():
        own_clean = seconds_of(lambda: encoder(own), repeats) / own_batch
    own_inversion = seconds_of(invert_and_encode, repeats) / own_batch
    flops["ours"] = _image_flops(encoder, invert_ours, images)
    timed = {"straightforward clean batch": clean, "straightforward inversion of a batch": invert,
             "own clean image": own_clean, "own inversion of an image": own_inversion}  # fmt: skip
    cells = []
    for n in (4, 10) if quick else (10, 100, 1000):
        cells.append(_totals(clip, n, repeats, width, timed, pairs_per_image)
                     | _flops(clip, n, width, flops, pairs_per_image))  # fmt: skip
        print(f"{name}, {n} classes: {cells[-1]['times_faster']:.1f} times faster", flush=True)
    return {"shape": name, "own_inversion_batch": own_batch, "pairs_per_image": pairs_per_image, "cells": cells}


def _image_flops(encode: Callable, invert: Callable, images: torch.Tensor) -> tuple[int, int]:
    """Of encoding one image, and of inverting one trigger."""
    with torch.no_grad():
        forward = flops_of(lambda: encode(images[:1]))
    return forward, flops_of(lambda: invert(images[:1]))


def _plain_prompts(clip, model, n: int) -> straightforward.PromptLearner:
    config = model.peft_config["default"]
    context = next(parameter for parameter in model.parameters() if parameter.requires_grad).detach()[:n]
    return straightforward.PromptLearner(
        clip, config.class_token_ids[:n], config.bos_token_id, config.eos_token_id, context
    )


def plain_step(clip, model, n: int) -> Callable[[], object]:
    learner = _plain_prompts(clip, model, min(n, TEXT_CLASSES_STRAIGHTFORWARD))
    return lambda: straightforward.encode_text(clip, learner).sum().backward()


def _totals(clip, n, repeats, width, timed, pairs) -> dict:
    model = attach_prompts(clip, n)
    step_ours = seconds_of(our_step(model, n, width), repeats if n > 100 else 5 * repeats)
    plain_text = seconds_of(plain_step(clip, model, n), repeats) * n / min(n, TEXT_CLASSES_STRAIGHTFORWARD)
    model.unload()
    n_images, steps = SHOTS * n, math.ceil(SHOTS * n / BATCH)
    straight = {
        "text tower": EPOCHS * steps * plain_text,
        "clean images": EPOCHS * steps * timed["straightforward clean batch"],
        "inversion": (EPOCHS - WARMUP)
        * steps
        * (timed["straightforward inversion of a batch"] + timed["straightforward clean batch"]),
    }
    ours = {
        "text tower": EPOCHS * steps * step_ours,
        "clean images": n_images * timed["own clean image"],
        "inversion": n_images * pairs * timed["own inversion of an image"],
    }
    totals = {"straightforward": sum(straight.values()), "ours": sum(ours.values())}
    return {
        "classes": n,
        "seconds_extrapolated": totals,
        "times_faster": totals["straightforward"] / totals["ours"],
        "seconds_by_stage": {"straightforward": straight, "ours": ours},
        "timed": timed | {"outer step": step_ours, "straightforward text step": plain_text},
        "straightforward_text_timed_on": min(n, TEXT_CLASSES_STRAIGHTFORWARD),
    }  # fmt: skip


def _flops(clip, n, width, of_images, pairs) -> dict:
    model = attach_prompts(clip, n)
    lengths = model.class_prompt_lengths()
    done_text = flops_of(our_step(model, n, width))
    with torch.no_grad():
        first = {length: lengths.index(length) for length in set(lengths)}
        one = {length: flops_of(partial(model.encode_class_prompts, [index])) for length, index in first.items()}
        learner = _plain_prompts(clip, model, 1)
        one_plain = flops_of(lambda: straightforward.encode_text(clip, learner))
    model.unload()
    needed_text = 2 * sum(one[length] for length in lengths)
    filled = sum(len(group) * max(lengths[index] for index in group) for group in length_groups(lengths))
    steps, n_images = EPOCHS * math.ceil(SHOTS * n / BATCH), SHOTS * n
    forward, inversion = of_images["ours"]
    images = n_images * (forward + pairs * (inversion + forward))
    forward, inversion = of_images["straightforward"]
    straight = n_images * (EPOCHS * forward + (EPOCHS - WARMUP) * (inversion + forward))
    straight += steps * 2 * one_plain * n
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
    batch = min(BATCH, 2 if quick else image_batch_size(encoder, images[:1], clip, BATCH, MEMORY_GB))
    own = images[:1].expand(batch, -1, -1, -1).contiguous()
    model = attach_prompts(clip, n)
    step = our_step(model, n, clip.config.projection_dim)
    before = peak_bytes()
    text = SharedClassEncoder(model, 0, torch.device("cpu"), MEMORY_GB)(model)  # alive while images are inverted
    goal = text[:1].detach().expand(batch, -1)
    invert_triggers(encoder, own, goal, -goal, BUDGET)
    del text
    step()
    return {"classes": n, "inversion_batch": batch, "peak_bytes": peak_bytes(), "peak_bytes_before": before}
