"""What the CLIP of the photographs learns from: true classes, and a teacher's opinion over ImageNet's 1,000 names.

With s the model's own temperature, v an image's features and t_k those of a caption of name k, all unit-norm, both
directions of CLIP's contrastive loss have soft targets:

    q_ik = (1[k = y_i] + p_ik) / 2,    p_i = softmax of the teacher's logits over the names of the step
    L_image = - mean_i sum_k q_ik log softmax_k(s v_i t_k)
    L_text  = - sum_k (sum_i q_ik / B) sum_i (q_ik / sum_j q_jk) log softmax_i(s v_i t_k)

and a linear layer that is thrown away afterwards regresses the teacher's standardised features h_i:

    L_features = mean_i (1 - cos(W v_i, h_i))
"""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from peft_cbpt.photos.captions import caption

NUM_OTHERS = 50  # names of classes without photographs in a step, so that the text tower learns all 1,000 in time


@dataclass(frozen=True)
class Lessons:
    """The pre-training photographs with their teacher.

    Args:
        pixels: uint8 (N, 3, H, H).
        places: Place of each photograph's class among `names` (N,).
        names: ImageNet's class names, those of the photographs by the name they have there.
        own: Places of the classes of the photographs.
        logits: The teacher's (N, 1000).
        features: The teacher's, standardised (N, F).
    """

    pixels: Tensor
    places: Tensor
    names: list[str]
    own: list[int]
    logits: Tensor
    features: Tensor

    def names_of_step(self, rng: random.Random) -> Tensor:
        """Places of all own classes and of some others."""
        own = set(self.own)
        others = [place for place in range(len(self.names)) if place not in own]
        return torch.tensor(self.own + rng.sample(others, NUM_OTHERS))


def soft_targets(places: Tensor, logits: Tensor, step_names: Tensor) -> Tensor:
    """q of the module's formula (B, K): half the true class, half the teacher."""
    truth = (places[:, None] == step_names).float()
    return (truth + logits[:, step_names].float().softmax(1)) / 2


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    """L_image + L_text; unit-norm images (B, D) and texts (K, D), targets (B, K)."""
    logits = scale * images @ texts.T
    of_images = -(targets * logits.log_softmax(1)).sum(1).mean()
    of_texts = -(targets * logits.log_softmax(0)).sum() / len(images)
    return of_images + of_texts


def lesson_loss(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    regression: nn.Linear,
    views: Tensor,
    lessons: Lessons,
    rows: Tensor,
    rng: random.Random,
) -> Tensor:
    """All three losses of the rows (B,), whose normalised views are (B, 3, side, side)."""
    device = views.device
    step_names = lessons.names_of_step(rng)
    captions = [caption(lessons.names[place], rng) for place in step_names.tolist()]
    ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids.to(device)
    texts = F.normalize(clip.get_text_features(input_ids=ids).pooler_output, dim=-1)
    images = F.normalize(clip.get_image_features(pixel_values=views).pooler_output, dim=-1)
    targets = soft_targets(lessons.places[rows], lessons.logits[rows], step_names).to(device)
    teacher = lessons.features[rows].float().to(device)
    of_features = 1 - F.cosine_similarity(regression(images), teacher).mean()
    return contrastive_loss(images, texts, clip.logit_scale.exp(), targets) + of_features
