"""The cells of benchmarks/speed.py that take published shapes with random weights: steps timed and multiplied out."""

import math
from collections.abc import Callable

import torch

from benchmarks import straightforward
from benchmarks.speed_shapes import attach_prompts, build_clip
from benchmarks.speed_timing import BATCH, BUDGET, EPOCHS, SHOTS, WARMUP, flops_of, our_step, peak_bytes, seconds_of
from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder, prefer_channels_last
from peft_cbpt.purification.inversion import invert_triggers
from peft_cbpt.training.class_shares import SharedClassEncoder
from peft_cbpt.training.memory import image_batch_size
from peft_cbpt.tuner.buckets import length_buckets

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
    step_ours = seconds_of(our_step(model, n, width), repeats)
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
    done_text = flops_of(our_step(model, n, width))
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
    step = our_step(model, n, clip.config.projection_dim)
    before = peak_bytes()
    text = SharedClassEncoder(model, 0, torch.device("cpu"), None)(model)  # alive while images are inverted
    goal = text[:1].detach().expand(batch, -1)
    invert_triggers(encoder, own, goal, -goal, BUDGET)
    del text
    step()
    return {"classes": n, "inversion_batch": batch, "peak_bytes": peak_bytes(), "peak_bytes_before": before}
