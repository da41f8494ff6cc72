"""Is a CLIP read as it was trained? A few labelled images tell, on which it is read in other ways as well."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.activations import ACT2FN
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.decoding import UnreadableImage
from peft_cbpt.evaluation.luck import LEVEL, luck
from peft_cbpt.evaluation.measure import encode_in_batches, template_text_features

SHOTS = 64
ACTIVATIONS = ("quick_gelu", "gelu")
PIXELS = {
    "OpenAI's": PixelNormalizer(),
    "a half": PixelNormalizer((0.5,) * 3, (0.5,) * 3),
    "raw pixels": PixelNormalizer((0.0,) * 3, (1.0,) * 3),
    "ImageNet's": PixelNormalizer(tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)),
}


class Reading(NamedTuple):
    """A way to read a model, and which images it is right on then, boolean (N,)."""

    activation: str
    pixels: str
    right: Tensor
    changes: int


def warn_of_reading(clip: LoadedCLIP, images: Dataset, class_names: Sequence[str], template: str) -> None:
    """Warn where a model does not seem to be read as it was trained, and say what to suspect.

    That is where zero-shot accuracy on `SHOTS` of the images is no more than chance, or where another activation or
    other pixel statistics are right significantly more often on the same images.

    Args:
        clip: The model.
        images: Rows of `pixel_values` (uint8) and `labels`.
        class_names: In label order.
        template: With `{}`.
    """
    pixels, labels = _drawn(images)
    if len(chances := Counter(labels.tolist())) < 2:
        return
    own, *others = _readings(clip, pixels, labels, class_names, template)
    better = [one for one in others if _luck_over(own, one) * len(others) < LEVEL]
    accuracy = f"zero-shot accuracy is {own.right.float().mean():.1%} on {len(labels)} images"
    if better:
        best = max(better, key=lambda one: (int(one.right.sum()), -one.changes))
        warnings.warn(f"{accuracy}: {_mended(own, best)}", stacklevel=2)
    elif luck(int(own.right.sum()), len(labels), max(chances.values()) / len(labels)) > LEVEL:
        warnings.warn(
            f"{accuracy}, near chance: suspect the class names (their words, or the order of labels), since no known "
            "activation or pixel statistics do better",
            stacklevel=2,
        )


def _luck_over(own: Reading, other: Reading) -> float:
    """Sign test: of images on which two readings disagree, how often so many would go to the other by chance."""
    gained, lost = int((other.right & ~own.right).sum()), int((own.right & ~other.right).sum())
    return luck(gained, gained + lost, 0.5)


@torch.no_grad()
def _readings(
    clip: LoadedCLIP, pixels: Tensor, labels: Tensor, class_names: Sequence[str], template: str
) -> list[Reading]:
    """The model's own reading, and all others."""
    text_config: Any = clip.model.config.text_config
    own, pixels = text_config.hidden_act, pixels.to(clip.model.device)
    others = {name: normalize for name, normalize in PIXELS.items() if not _same(normalize, clip.normalize)}
    found = []
    for activation in dict.fromkeys((own, *ACTIVATIONS)):
        with activated(clip.model, activation):
            text = template_text_features(clip.model, clip.tokenizer, class_names, template).cpu()
            for name, normalize in {"": clip.normalize, **others}.items():
                features = encode_in_batches(image_encoder(clip.model, normalize), pixels)
                right = (features @ text.T).argmax(1) == labels
                found.append(Reading(activation, name, right, (activation != own) + bool(name)))
    return found


def _mended(own: Reading, best: Reading) -> str:
    suspects = []
    if best.activation != own.activation:
        suspects.append(f"the activation, which is taken for {own.activation} and may be {best.activation}")
    if best.pixels:
        mean, std = (
            [round(one, 4) for one in numbers] for numbers in (PIXELS[best.pixels].mean, PIXELS[best.pixels].std)
        )
        suspects.append(f"the pixel statistics, which may be {best.pixels} (image_mean {mean}, image_std {std})")
    return f"suspect {' and '.join(suspects)}; so read it is right on {best.right.float().mean():.1%}"


@contextmanager
def activated(model: Any, activation: str) -> Iterator[None]:
    """A model with another activation in all its layers, while the block runs."""
    layers = [module for module in model.modules() if hasattr(module, "activation_fn")]
    before = [layer.activation_fn for layer in layers]
    try:
        for layer in layers:
            layer.activation_fn = ACT2FN[activation]
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.activation_fn = own


def _same(one: PixelNormalizer, other: PixelNormalizer) -> bool:
    """Whether statistics are the same, but for digits that files leave out."""
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=True)
    return all(math.isclose(*pair, abs_tol=1e-3) for pair in pairs)


def _drawn(images: Any) -> tuple[Tensor, Tensor]:
    pixels: list[Tensor] = []
    labels: list[int] = []
    for row in keyed_generator("reading").permutation(len(images)).tolist():
        if len(pixels) == SHOTS:
            break
        try:
            found = images[row]
        except UnreadableImage:
            continue
        pixels.append(found["pixel_values"])
        labels.append(int(found["labels"]))
    return torch.stack(pixels), torch.tensor(labels)
