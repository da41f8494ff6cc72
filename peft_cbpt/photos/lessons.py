"""What the CLIP of the photographs learns from: true classes, and opinions over ImageNet's 1,000 names.

The teacher was trained on photographs of 224 pixels and names few of 64 rightly (18% of 1,000 names, 36% of our 202),
but a linear layer on its features does better (48% of 202). So the opinion on the classes that have photographs is a
layer's that was fitted to the other half of them, and on all other names it is the teacher's own.

With s the model's own temperature, v an image's features and t_k those of a caption of name k, all unit-norm, both
directions of CLIP's contrastive loss have soft targets:

    q_ik = (1[k = y_i] + p_ik) / 2,    p_i: the opinions on the names of the step, to a sum of 1
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

NUM_OTHERS = 16  # names beside those of a step's photographs, so that the text tower learns all 1,000 in time


@dataclass(frozen=True)
class Lessons:
    """The pre-training photographs with their teacher.

    Args:
        pixels: uint8 (N, 3, H, H).
        places: Place of each photograph's class among `names` (N,).
        names: ImageNet's class names, those of the photographs by the name they have there.
        opinions: Probability of each name (N, 1000), up to a factor a row.
        features: The teacher's, standardised (N, F).
    """

    pixels: Tensor
    places: Tensor
    names: list[str]
    opinions: Tensor
    features: Tensor

    def names_of_step(self, rows: Tensor, rng: random.Random) -> Tensor:
        """Places of the classes of these photographs and of some others."""
        shown = self.places[rows].unique().tolist()
        others = sorted(set(range(len(self.names))).difference(shown))
        return torch.tensor(shown + rng.sample(others, NUM_OTHERS))


def out_of_fold_opinions(features: Tensor, labels: Tensor, seed: int, num_epochs: int = 4) -> Tensor:
    """Class probabilities (N, n_classes) by two logistic regressions, each fitted to the other half of the rows.

    Args:
        features: Standardised (N, F).
        labels: (N,).
        seed: Seed of the halves and of the order of rows.
        num_epochs: Passes over a half; accuracy on the other one no longer rose after four.
    """
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randperm(len(labels), generator=generator).chunk(2)
    opinions = torch.empty(len(labels), int(labels.max()) + 1)
    for fitted, asked in (halves, halves[::-1]):
        layer = nn.Linear(features.shape[1], opinions.shape[1])
        nn.init.zeros_(layer.weight)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.3)
        for _ in range(num_epochs):
            for rows in fitted[torch.randperm(len(fitted), generator=generator)].split(512):
                loss = F.cross_entropy(layer(features[rows].float()), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            opinions[asked] = layer(features[asked].float()).softmax(1)
    return opinions


def soft_targets(places: Tensor, opinions: Tensor, step_names: Tensor) -> Tensor:
    """q of the module's formula (B, K): half the true class, half the opinions."""
    truth = (places[:, None] == step_names).float()
    opinions = opinions[:, step_names].float()
    return (truth + opinions / opinions.sum(1, keepdim=True)) / 2


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
    """All three losses of the rows (B,), whose normalised views are (B, 3, side, side); the image tower is in bf16."""
    device = views.device
    step_names = lessons.names_of_step(rows, rng)
    captions = [caption(lessons.names[place], rng) for place in step_names.tolist()]
    ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids.to(device)
    texts = F.normalize(clip.get_text_features(input_ids=ids).pooler_output, dim=-1)
    with torch.autocast(device.type, torch.bfloat16):
        encoded = clip.get_image_features(pixel_values=views).pooler_output
    images = F.normalize(encoded.float(), dim=-1)
    targets = soft_targets(lessons.places[rows], lessons.opinions[rows], step_names).to(device)
    teacher = lessons.features[rows].float().to(device)
    of_features = 1 - F.cosine_similarity(regression(images), teacher).mean()
    return contrastive_loss(images, texts, clip.logit_scale.exp(), targets) + of_features
