"""The paper's loop as a CoOp-style research repository would write it: the reference for results and speed.

Prompts of 77 tokens, a whole pass of the text tower at every step, every image of a batch encoded anew and its
trigger inverted anew in every epoch. Only the features from which positives are chosen are computed once, as nobody
would encode a class's images anew for every sample. Nothing here is imported from peft_cbpt.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT_LENGTH = 77
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class PromptLearner(nn.Module):
    """CoOp's: [BOS] [V]_1 ... [V]_M [class name] [.] [EOS], filled up to the text tower's length.

    Args:
        clip: A `CLIPModel`.
        prompts: For each class the tokens of its name and of the period.
        bos, eos: Ids of these tokens.
        context: Initial context (n_classes, M, d).
    """

    def __init__(self, clip, prompts: Sequence[Sequence[int]], bos: int, eos: int, context: Tensor):
        super().__init__()
        embedding = clip.text_model.embeddings.token_embedding
        length = min(CONTEXT_LENGTH, clip.config.text_config.max_position_embeddings)
        num_context = context.shape[1]
        rows = [[bos, *[0] * num_context, *name, eos] for name in prompts]
        self.ids = torch.tensor([row + [eos] * (length - len(row)) for row in rows], device=context.device)
        self.ends = torch.tensor([len(row) - 1 for row in rows], device=context.device)
        with torch.no_grad():
            embedded = embedding(self.ids)
        self.prefix, self.suffix = embedded[:, :1], embedded[:, 1 + num_context :]
        self.context = nn.Parameter(context.clone())

    def forward(self) -> Tensor:
        """Token embeddings (n_classes, L, d)."""
        return torch.cat([self.prefix, self.context, self.suffix], dim=1)


def encode_text(clip, learner: PromptLearner) -> Tensor:
    """f_t of Eq. 8: unit-norm (n_classes, D)."""
    tower = clip.text_model
    hidden = learner() + tower.embeddings.position_embedding.weight[: learner.ids.shape[1]]
    length = hidden.shape[1]
    mask = torch.full((length, length), -math.inf, device=hidden.device).triu(1)[None, None]
    for layer in tower.encoder.layers:
        hidden = layer(hidden, attention_mask=mask)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    hidden = tower.final_layer_norm(hidden)
    pooled = hidden[torch.arange(len(hidden), device=hidden.device), learner.ends]
    return F.normalize(clip.text_projection(pooled), dim=-1)


def encode_image(clip, images: Tensor) -> Tensor:
    """f_v of Eq. 1 on images in [0, 1]: unit-norm (B, D)."""
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (MEAN, STD))
    features = clip.get_image_features(pixel_values=(images - mean) / std).pooler_output
    return F.normalize(features, dim=-1)


@dataclass
class Settings:
    """The paper's schedule; the budget is a bound on every pixel, with sign steps, or l2 with raw ones."""

    epochs: int = 20
    warmup_epochs: int = 5
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lambdas: tuple[float, float, float] = (1.0, 0.4, 0.4)
    steps: int = 10
    step_size: float = 2 / 255
    epsilon: float = 6 / 255
    sign: bool = True


def invert(clip, images: Tensor, positives: Tensor, negatives: Tensor, settings: Settings) -> Tensor:
    """The inner problem of Eq. 16: ten steps on the perturbation through the image encoder."""
    delta = torch.zeros_like(images)
    for _ in range(settings.steps):
        delta.requires_grad_(True)
        features = encode_image(clip, images + delta)
        loss = ((features * negatives).sum(1) - (features * positives).sum(1)).sum()
        (gradient,) = torch.autograd.grad(loss, delta)
        if settings.sign:
            delta = (delta.detach() - settings.step_size * gradient.sign()).clamp(-settings.epsilon, settings.epsilon)
        else:
            delta = delta.detach() - settings.step_size * gradient
            length = delta.flatten(1).norm(dim=1).clamp(min=1e-30)[:, None, None, None]
            delta = delta * (settings.epsilon / length).clamp(max=1)
        delta = (images + delta).clamp(0, 1) - images
    return delta


def objective(clean: Tensor, perturbed: Tensor, labels: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Eq. 16 from logits (B, n_classes), as in Eq. 13-15."""
    bn = F.cross_entropy(clean, labels) + F.cross_entropy(perturbed, labels)
    probabilities = perturbed.softmax(1)
    of_target = probabilities.gather(1, targets[:, None])[:, 0]
    adv = -torch.log((1 - of_target).clamp(min=1e-12)).mean()
    confidence = clean.softmax(1).gather(1, labels[:, None])[:, 0].detach()
    align = (confidence * (clean.softmax(1) - probabilities).square().mean(1)).mean()
    return settings.lambdas[0] * bn + settings.lambdas[1] * adv + settings.lambdas[2] * align


def outer_step(
    clip,
    learner: PromptLearner,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    features: Tensor,
    all_labels: Tensor,
    settings: Settings,
    warming_up: bool,
) -> None:
    """One step on a batch of images (B, 3, H, W); `features` and `all_labels` are those of all training images."""
    scale = clip.logit_scale.exp().detach()
    text = encode_text(clip, learner)
    with torch.no_grad():
        clean_features = encode_image(clip, images)
    clean = scale * clean_features @ text.T
    if warming_up:
        loss = settings.lambdas[0] * F.cross_entropy(clean, labels)
    else:
        others = clean.detach().scatter(1, labels[:, None], -math.inf)
        targets = others.argmax(1)
        cosines = (clean_features @ features.T).masked_fill(all_labels[None] != targets[:, None], math.inf)
        cosines[torch.arange(len(rows)), rows] = math.inf
        positives = features[cosines.argmin(1)]
        delta = invert(clip, images, positives, clean_features, settings)
        with torch.no_grad():
            perturbed_features = encode_image(clip, images + delta)
        loss = objective(clean, scale * perturbed_features @ text.T, labels, targets, settings)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def purify(
    clip,
    learner: PromptLearner,
    load_images: Callable[[Sequence[int]], Tensor],
    labels: Tensor,
    epochs: Iterable[Iterable[Sequence[int]]],
    settings: Settings,
) -> Tensor:
    """The whole training.

    Args:
        clip: The frozen CLIP.
        learner: The prompts.
        load_images: From row numbers to images in [0, 1].
        labels: Of all training images.
        epochs: For each epoch the rows of each batch.
        settings: The schedule.

    Returns:
        The learned context (n_classes, M, d).
    """
    clip.eval().requires_grad_(False)
    rows = torch.arange(len(labels))
    with torch.no_grad():
        features = torch.cat([encode_image(clip, load_images(part.tolist())) for part in rows.split(32)])
    optimizer = torch.optim.SGD(
        [learner.context], lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    for epoch, batches in enumerate(epochs):
        optimizer.param_groups[0]["lr"] = settings.lr * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        for batch in batches:
            part = torch.as_tensor(batch)
            warming_up = epoch < settings.warmup_epochs
            images = load_images(part.tolist())
            outer_step(clip, learner, optimizer, images, labels[part], part, features, labels, settings, warming_up)
    return learner.context.detach()
