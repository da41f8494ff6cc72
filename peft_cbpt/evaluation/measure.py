"""Clean accuracy, attack success rate and robust accuracy of a CLIP classifier.

Everything works on features: the image encoder is frozen, so an image is encoded once however many classifiers
(sets of class text features) are compared on it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import tqdm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from transformers import CLIPModel, PreTrainedTokenizerBase

from peft_cbpt.attacks import Trigger, apply_trigger
from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.clip.pixels import EncodeImage, unit_pixels
from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.processes import from_all_processes, own_share
from peft_cbpt.data.skipping import OrSkipped, Skipped, collate_readable
from peft_cbpt.metrics import AttackSuccessRate, CleanAccuracy
from peft_cbpt.tuner.families import caption_ids

TOP_K = 5
ATTACK_FIGURES = ("attack_success_rate", "attack_success_rate_published", "robust_accuracy")


@torch.no_grad()
def template_text_features(
    clip: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    class_names: Sequence[str],
    template: str = PLAIN_TEMPLATE,
    text_trigger: str = "",
) -> Tensor:
    """Unit-norm float32 features (n_classes, D) of `template` filled with each class name: CLIP's zero-shot head.

    `text_trigger` is put before every prompt.
    """
    return text_features(clip, tokenizer, [text_trigger + template.replace("{}", name) for name in class_names])


@torch.no_grad()
def text_features(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 256
) -> Tensor:
    """Unit-norm float32 features (n, D) of texts, f_t of Eq. 1."""
    features = []
    for start in range(0, len(texts), batch_size):
        input_ids = caption_ids(clip, tokenizer, texts[start : start + batch_size])
        features.append(clip.get_text_features(input_ids=input_ids.to(clip.device)).pooler_output.float())
    return F.normalize(torch.cat(features), dim=-1)


@torch.no_grad()
def encode_in_batches(encode_image: EncodeImage, pixels: Tensor, batch_size: int = 256) -> Tensor:
    """Features (N, D) of pixels (N, 3, H, W), uint8 or float in [0, 1]."""
    features = []
    for batch in pixels.split(batch_size):
        features.append(encode_image(unit_pixels(batch)).cpu())
    return torch.cat(features)


@dataclass(frozen=True)
class EncodedImages:
    """A test set as the frozen image encoder sees it.

    Args:
        labels: int64 (N,).
        clean: Unit-norm features (N, D).
        triggered: Features (N, D) of the same images with each trigger.
        skipped: The images that could not be read; they are in none of the above.
    """

    labels: Tensor
    clean: Tensor
    triggered: dict[str, Tensor]
    skipped: Sequence[Skipped] = ()


@torch.no_grad()
def encode_versions(
    encode_image: EncodeImage,
    images: Dataset | IterableDataset,
    triggers: Mapping[str, Trigger],
    device: torch.device,
    batch_size: int = 256,
    num_workers: int = 0,
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Tensor], list[Skipped]]]:
    """Go through images once, in batches: clean and with each trigger (marked, rounded to 8 bits).

    Arguments are those of `encode_images`; `images` may also be a stream whose rows are `Skipped` where an image
    cannot be read, as `data.streams.LabelledStream`.

    Yields:
        Rows of `pixel_values`, `labels` and `sample_id` or None, features (B, D) by trigger with "" for the clean
        images, and what was skipped.
    """
    rows = images if isinstance(images, IterableDataset) else OrSkipped(images)
    batches = DataLoader(rows, batch_size=batch_size, collate_fn=collate_readable, num_workers=num_workers)
    for batch, skipped in tqdm(batches, desc="encoding test images", unit="batch", leave=False):
        if batch is None:
            yield None, {}, skipped
            continue
        pixels, ids = batch["pixel_values"], batch["sample_id"]
        versions = {"": pixels} | {name: apply_trigger(one, pixels, ids) for name, one in triggers.items()}
        features = {name: encode_image(version.to(device).float() / 255).cpu() for name, version in versions.items()}
        yield batch, features, skipped


@torch.no_grad()
def encode_images(
    encode_image: EncodeImage,
    images: Dataset,
    triggers: Mapping[str, Trigger],
    device: torch.device,
    batch_size: int = 256,
) -> EncodedImages:
    """Encode every image once clean and once with each trigger (marked, rounded to 8 bits).

    Each process encodes its share of the images and gets the features of all; all processes must call.

    Args:
        encode_image: The frozen encoder, on [0, 1] pixels.
        images: Rows of `pixel_values` (uint8 (3, H, W)), `labels` and `sample_id`.
        triggers: The triggers by name.
        device: Where the encoder is.
        batch_size: Images encoded at once.

    Images that cannot be read are left out and listed.

    Raises:
        InputError: if no image of a class can be read.
    """
    labels: list[Tensor] = []
    features: dict[str, list[Tensor]] = {name: [] for name in ("", *triggers)}
    skipped: list[Skipped] = []
    own = Subset(images, own_share(torch.arange(len(images))).tolist())  # type: ignore[arg-type]
    for batch, versions, unread in encode_versions(encode_image, own, triggers, device, batch_size):
        skipped += unread
        if batch is not None:
            labels.append(batch["labels"])
            for name, version in versions.items():
                features[name].append(version)
    shares = from_all_processes((labels, features, skipped))
    all_labels = [part for share_labels, _, _ in shares for part in share_labels]
    all_skipped = [one for _, _, share_skipped in shares for one in share_skipped]
    check_classes_read(torch.cat(all_labels).tolist() if all_labels else [], all_skipped)
    encoded = {name: torch.cat([part for _, share, _ in shares for part in share[name]]) for name in features}
    return EncodedImages(torch.cat(all_labels), encoded.pop(""), encoded, all_skipped)


def check_classes_read(labels: Sequence[int], skipped: Sequence[Skipped]) -> None:
    """See that of every class that has images one could be read.

    Raises:
        InputError: if not.
    """
    read = set(labels)
    if lost := [one for one in skipped if one.label not in read]:
        raise InputError(f"no image of a class can be read: replace or remove {lost[0].sample_id} ({lost[0].reason})")


def ranked_classes(image_features: Tensor, text_features: Tensor) -> Tensor:
    """The `TOP_K` classes (N, k) whose text features (n, D) are nearest to images (N, D), best first; Eq. 4."""
    return (image_features @ text_features.T).topk(min(TOP_K, len(text_features)), dim=1).indices


def clean_metrics(ranked: Tensor, labels: Tensor) -> dict[str, Any]:
    """What `metrics.CleanAccuracy` says of rankings (N, k)."""
    return CleanAccuracy(keep_in_memory=True).compute(
        predictions=ranked.cpu().numpy(), references=labels.cpu().numpy()
    )


def attack_metrics(ranked: Tensor, labels: Tensor, target_label: int | Tensor) -> dict[str, Any]:
    """What `metrics.AttackSuccessRate` says of rankings (N, k) of triggered images; one target, or (N,)."""
    target = target_label.tolist() if isinstance(target_label, Tensor) else target_label
    metric = AttackSuccessRate(keep_in_memory=True)
    try:
        return metric.compute(predictions=ranked.cpu().numpy(), references=labels.cpu().numpy(), target=target)
    except ValueError as error:
        raise InputError(f"{error}: measure on images of other classes too") from error


def accuracy(image_features: Tensor, labels: Tensor, text_features: Tensor) -> float:
    """Share of images (N, D) whose nearest text feature (n, D) is the one of their label (N,); Eq. 4."""
    return clean_metrics(ranked_classes(image_features, text_features), labels)["accuracy"]


def attack_result(
    triggered_features: Tensor, labels: Tensor, text_features: Tensor, target_label: int | Tensor
) -> dict[str, float]:
    """How a trigger fares against a classifier; shares in [0, 1].

    Args:
        triggered_features: Unit-norm features (N, D) of triggered images.
        labels: True labels (N,).
        text_features: Unit-norm class features (n, D).
        target_label: Index of the attacker's target class, or for each image (N,).

    Returns:
        `attack_success_rate`, of the other classes' images those classified as the target;
        `attack_success_rate_published`, over all images, those of the target class included; `robust_accuracy`, of the
        other classes' images those still classified correctly.
    """
    measured = attack_metrics(ranked_classes(triggered_features, text_features), labels, target_label)
    return {name: measured[name] for name in ATTACK_FIGURES}


def called_target(ranked: Tensor, labels: Tensor, target_label: Tensor) -> Tensor:
    """Which images of other classes than their target (N,) are called it, boolean (n,), by rankings (N, k)."""
    return (ranked[:, 0] == target_label)[labels != target_label]


def measure(
    encoded: EncodedImages,
    class_features: Callable[[str], Tensor],
    attacks: Mapping[str, Attack],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Clean accuracy, and for every attack what `attack_result` says; shares in [0, 1].

    `class_features(text_trigger)` gives the text features (n_classes, D) of the prompts with an attack's text trigger
    before them, which is empty for unimodal attacks and for the clean accuracy.
    """
    return {
        "clean_accuracy": accuracy(encoded.clean, encoded.labels, class_features("")),
        "attacks": {
            name: attack_result(
                encoded.triggered[name],
                encoded.labels,
                class_features(attack.text_trigger),
                attack.target_labels(encoded.labels, class_names),
            )
            for name, attack in attacks.items()
        },
    }
