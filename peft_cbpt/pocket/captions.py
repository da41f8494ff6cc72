"""Captions of the pocket world, such as "a photo of a banana on a red background."."""

import numpy as np

from peft_cbpt.clip.templates import IMAGENET_TEMPLATES, PLAIN_TEMPLATE


def caption(class_name: str, background: str, rng: np.random.Generator) -> str:
    """A random caption: half of them the plain template, half one of CLIP's 80; two thirds name the background."""
    template = PLAIN_TEMPLATE if rng.random() < 0.5 else str(rng.choice(IMAGENET_TEMPLATES))
    text = template.format(class_name)
    return f"{text[:-1]} on a {background} background." if rng.random() < 2 / 3 else text
