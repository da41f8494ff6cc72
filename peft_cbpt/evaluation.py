"""Clean accuracy, attack success rate and robust accuracy of a CLIP classifier.

Everything works on features: the image encoder is frozen, so an image is encoded once however many classifiers
(sets of class text features) are compared on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from accelerate.utils import tqdm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import CLIPModel, PreTrainedTokenizerBase

from peft_cbpt.attacks import Trigger, apply_trigger
from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.clip.processes import from_all_processes, own_share
from peft_cbpt.clip.templates import PLAIN_TEMPLATE


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
    return text_features(clip, tokenizer, [text_trigger + template.format(name) for name in class_names])


@torch.no_grad()
def text_features(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 256
) -> Tensor:
    """Unit-norm float32 features (n, D) of texts, f_t of Eq. 1."""
    features = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        features.append(clip.get_text_features(input_ids=batch.input_ids.to(clip.device)).pooler_output.float())
    return F.normalize(torch.cat(features), dim=-1)


@torch.no_grad()
def encode_in_batches(encode_image: EncodeImage, pixels: Tensor, batch_size: int = 256) -> Tensor:
    """Features (N, D) of pixels (N, 3, H, W), uint8 or float in [0, 1]."""
    features = []
    for batch in pixels.split(batch_size):
        features.append(encode_image(batch.float() / 255 if batch.dtype == torch.uint8 else batch).cpu())
    return torch.cat(features)


@dataclass(frozen=True)
class EncodedImages:
    """A test set as the frozen image encoder sees it.

    Args:
        labels: int64 (N,).
        clean: Unit-norm features (N, D).
        triggered: Features (N, D) of the same images with each trigger.
    """

    labels: Tensor
    clean: Tensor
    triggered: dict[str, Tensor]


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
    """
    labels: list[Tensor] = []
    features: dict[str, list[Tensor]] = {name: [] for name in ("", *triggers)}
    own = Subset(images, own_share(torch.arange(len(images))).tolist())  # type: ignore[arg-type]
    batches = DataLoader(own, batch_size=batch_size)
    for batch in tqdm(batches, desc="encoding test images", unit="batch", leave=False):
        pixels = batch["pixel_values"]
        labels.append(batch["labels"])
        versions = {name: apply_trigger(trigger, pixels, batch["sample_id"]) for name, trigger in triggers.items()}
        for name, version in {"": pixels, **versions}.items():
            features[name].append(encode_image(version.to(device).float() / 255).cpu())
    shares = from_all_processes((labels, features))
    encoded = {name: torch.cat([part for _, share in shares for part in share[name]]) for name in features}
    return EncodedImages(torch.cat([part for share, _ in shares for part in share]), encoded.pop(""), encoded)


def accuracy(image_features: Tensor, labels: Tensor, text_features: Tensor) -> float:
    """Share of images (N, D) whose nearest text feature (n, D) is the one of their label (N,); Eq. 4."""
    return ((image_features @ text_features.T).argmax(1) == labels).float().mean().item()


@dataclass(frozen=True)
class AttackResult:
    """How one trigger fares against one classifier; shares in [0, 1]."""

    attack_success_rate: float
    """Triggered images of the other classes that are classified as the target."""
    attack_success_rate_published: float
    """The published convention: over all images, those of the target class included."""
    robust_accuracy: float
    """Triggered images of the other classes that are still classified correctly."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def attack_result(
    triggered_features: Tensor, labels: Tensor, text_features: Tensor, target_label: int
) -> AttackResult:
    """Measure a trigger.

    Args:
        triggered_features: Unit-norm features (N, D) of triggered images.
        labels: True labels (N,).
        text_features: Unit-norm class features (n, D).
        target_label: Index of the attacker's target class.
    """
    predicted = (triggered_features @ text_features.T).argmax(1)
    others = labels != target_label
    return AttackResult(
        attack_success_rate=(predicted[others] == target_label).float().mean().item(),
        attack_success_rate_published=(predicted == target_label).float().mean().item(),
        robust_accuracy=(predicted[others] == labels[others]).float().mean().item(),
    )
