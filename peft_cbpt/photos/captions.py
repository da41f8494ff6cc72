"""Captions of photographs, such as "a bright photo of a banana.": a class name in one of CLIP's templates."""

import random

from peft_cbpt.clip.templates import IMAGENET_TEMPLATES, PLAIN_TEMPLATE


def caption(class_name: str, rng: random.Random) -> str:
    """A random caption: half of them the plain template, half one of CLIP's 80."""
    template = PLAIN_TEMPLATE if rng.random() < 0.5 else rng.choice(IMAGENET_TEMPLATES)
    return template.format(class_name)
