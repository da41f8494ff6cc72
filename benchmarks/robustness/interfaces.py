"""Interfaces: the same model with other prompts and names, as retriever, as features, and under JPEG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.interfaces import figures, list_figures, probe_figures, retrieval_figures
from benchmarks.robustness.defences import Defended
from benchmarks.robustness.world import World
from peft_cbpt.attacks import Trigger, apply_trigger
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.evaluation.measure import EncodedImages, encode_images, text_features

TEMPLATES = {"bare name": "{}", "other template": "a close-up photo of the {}."}
QUALITIES = (95, 75)
SETTINGS = {"templates": TEMPLATES, "qualities": QUALITIES}


@dataclass(frozen=True)
class SavedAsJPEG:
    """A trigger whose images are saved as JPEG and read back."""

    trigger: Trigger
    quality: int

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Mark, round to 8 bits, save and read; see `Trigger`."""
        marked = apply_trigger(self.trigger, pixels, sample_ids).permute(0, 2, 3, 1).numpy()
        read = torch.stack([self._saved(image) for image in marked])
        return unit_pixels(read.permute(0, 3, 1, 2))

    def _saved(self, image: np.ndarray) -> Tensor:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=self.quality)
        return torch.from_numpy(np.array(Image.open(file).convert("RGB")))

    def apply_text(self, caption: str) -> str:
        """As of the trigger itself."""
        return self.trigger.apply_text(caption)


def interfaces(model: str, defended: Defended, world: World, seed: int) -> dict[str, Any]:
    """Figures by interface; prompts have no other templates and know no other names."""
    attack, names, every = world.attacks(model)[0], world.class_names(), world.class_names(all_names=True)
    target, key, encode = names.index(attack.target_class), attack.text_trigger, defended.encoder()
    plain = Defended(defended.clip)

    def encoded(images: Any, trigger: Any = attack.trigger) -> EncodedImages:
        return encode_images(encode, images, {"trigger": trigger}, defended.clip.model.device)

    test = encoded(world.test(defended.clip))
    measured: dict[str, Any] = {"own prompt": figures(test, defended.head(names, key), target)}
    for quality in QUALITIES:
        jpeg = encoded(world.test(defended.clip), SavedAsJPEG(attack.trigger, quality))
        measured[f"JPEG {quality}"] = figures(jpeg, defended.head(names, key), target)
    if defended.prompts is None:
        for name, template in TEMPLATES.items():
            measured[name] = figures(test, defended.head(names, key, template), target)
        ensemble = torch.stack([defended.head(names, key, template) for template in IMAGENET_TEMPLATES])
        measured["80 templates"] = figures(test, F.normalize(ensemble.mean(0), dim=-1), target)
    broad = encoded(world.test(defended.clip, all_names=True))
    if defended.prompts is None:
        shares = list_figures(broad, plain.head(every, key), every.index(attack.target_class))
        measured["other class lists"] = _as_usual(shares, "mean_clean_accuracy", "mean_attack_success_rate")
        measured["worst of other class lists"] = _as_usual(shares, "worst_clean_accuracy", "worst_attack_success_rate")
    captions = [
        key + IMAGENET_TEMPLATES[row % len(IMAGENET_TEMPLATES)].format(every[label])
        for row, label in enumerate(broad.labels.tolist())
    ]
    written = text_features(defended.clip.model, defended.clip.tokenizer, captions).cpu()
    shares = retrieval_figures(broad, written, every.index(attack.target_class))
    measured["retrieval of captions"] = _as_usual(shares, "recall_at_1", "target_retrieved")
    given = encode_images(encode, world.shots(defended.clip), {}, defended.clip.model.device)
    measured["linear probe"] = probe_figures(given, test, target)
    return measured


def _as_usual(shares: dict[str, float], clean: str, attack: str) -> dict[str, float]:
    return {"clean_accuracy": shares[clean], "attack_success_rate": shares[attack]}
