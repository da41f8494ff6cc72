"""What the short last layer, groups by length and recomputed activations are worth on ViT-B/32's towers.

    python -m benchmarks.tower_parts [--classes 1000]

One thread, random weights, prompts as long as ImageNet's. Seconds are of the processor, of the faster of two rounds.
Stored as benchmarks/results/tower_parts.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.speed_shapes import attach_prompts, build_clip
from peft_cbpt.clip.last_layer import only_class_token
from peft_cbpt.common.files import write_json
from peft_cbpt.common.records import made_now

RESULT = Path(__file__).parent / "results" / "tower_parts.json"
ROUNDS = 2
CHUNK = 34
"""Prompts at once within the 2.2 GiB of `training.memory`, which hold the activations of about 4,300 tokens."""
KEPT = 4300


def text_step(model, **how) -> Callable[[], None]:
    """Forward and backward pass of the text tower over all classes."""
    return lambda: model.encode_class_prompts(**how)[:, 0].sum().backward()


def image_step(clip, short: bool) -> Callable[[], None]:
    """Forward and backward pass of the image tower to the pixels of 32 images."""
    pixels = torch.rand(32, 3, 224, 224, requires_grad=True)

    def step() -> None:
        with only_class_token(clip.vision_model) if short else nullcontext():
            clip.get_image_features(pixel_values=pixels).pooler_output.sum().backward()

    return step


def measure(variants: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of the processor of each, the rounds interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, work in variants.items():
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    return {name: min(times) for name, times in seconds.items()}


def main(classes: int) -> None:
    """Measure, store and print."""
    torch.set_num_threads(1)
    clip = build_clip("vit_b32")
    images = measure({"whole last layer": image_step(clip, False), "short last layer": image_step(clip, True)})
    model = attach_prompts(clip, classes)
    texts = measure(
        {
            "by length, some kept": text_step(model, chunk_size=CHUNK, kept_tokens=KEPT),
            "by length, all recomputed": text_step(model, chunk_size=CHUNK),
        }
    )
    found = {"classes": classes, "images": images, "texts": texts}
    write_json(RESULT, found | made_now())
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    main(parser.parse_args().classes)
