import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_cbpt.photos.augmentation import augment
from peft_cbpt.photos.lessons import (
    NUM_OTHERS,
    Lessons,
    contrastive_loss,
    lesson_loss,
    out_of_fold_opinions,
    soft_targets,
)
from peft_cbpt.photos.model import PROJECTION_DIM, build_model, build_tokenizer


def random_lessons(count=8):
    generator = torch.Generator().manual_seed(0)
    return Lessons(
        pixels=torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator),
        places=torch.arange(count) % 3,
        names=["banana", "acorn", "sea slug", *(f"thing {number}" for number in range(NUM_OTHERS + 5))],
        opinions=torch.rand(count, NUM_OTHERS + 8, generator=generator),
        features=torch.randn(count, 10, generator=generator),
    )


def test_targets_are_half_the_true_class_and_half_the_opinions_on_the_names_of_the_step():
    opinions = torch.tensor([[0.3, 0.1, 0.9, 0.1]])
    targets = soft_targets(torch.tensor([3]), opinions, torch.tensor([0, 3]))
    torch.testing.assert_close(targets, torch.tensor([[0.75 / 2, 1.25 / 2]]))


def test_opinions_are_of_a_layer_that_did_not_see_the_row():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (600,), generator=generator)
    noise = torch.randn(600, 8, generator=generator)
    telling = noise + 4 * F.one_hot(labels, 8)
    for features, low, high in ((telling, 0.9, 1.0), (noise, 0.2, 0.45)):
        opinions = out_of_fold_opinions(features, labels, seed=0, num_epochs=200)
        torch.testing.assert_close(opinions.sum(1), torch.ones(600))
        assert low <= (opinions.argmax(1) == labels).float().mean() <= high


def test_the_loss_is_clips_own_for_pairs():
    images, texts = (F.normalize(torch.randn(5, 7), dim=1) for _ in range(2))
    scale, labels = torch.tensor(10.0), torch.arange(5)
    logits = scale * images @ texts.T
    wanted = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
    torch.testing.assert_close(contrastive_loss(images, texts, scale, torch.eye(5)), wanted)


def test_a_step_has_the_classes_shown_and_others():
    lessons = random_lessons()
    names = lessons.names_of_step(torch.tensor([0, 1, 3]), random.Random(0)).tolist()
    assert names[:2] == [0, 1] and len(set(names)) == len(names) == 2 + NUM_OTHERS


@pytest.mark.parametrize("architecture", ["resnet", "vit"])
def test_steps_lower_the_loss(architecture):
    torch.manual_seed(0)
    lessons, tokenizer, rows = random_lessons(), build_tokenizer(), torch.arange(8)
    clip, regression = build_model(tokenizer, architecture, 32), nn.Linear(PROJECTION_DIM, 10)
    optimizer = torch.optim.AdamW([*clip.parameters(), *regression.parameters()], lr=1e-3)
    views = F.avg_pool2d(lessons.pixels.float() / 255, 2) - 0.5
    losses = []
    for _ in range(12):
        loss = lesson_loss(clip, tokenizer, regression, views, lessons, rows, random.Random(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


def test_views_are_seeded_differ_and_stay_in_range():
    pixels = random_lessons().pixels
    views, again = (augment(pixels, 32, torch.Generator().manual_seed(1)) for _ in range(2))
    assert views.shape == (8, 3, 32, 32) and 0 <= views.min() and views.max() <= 1
    assert torch.equal(views, again)
    assert not torch.equal(views, augment(pixels, 32, torch.Generator().manual_seed(2)))


def test_a_view_of_an_even_picture_is_even():
    pixels = torch.full((4, 3, 64, 64), 100, dtype=torch.uint8)
    views = augment(pixels, 64, torch.Generator().manual_seed(0))
    assert (views - views[:, :, :1, :1]).abs().max() < 1e-6 and views[:, 0, 0, 0].unique().numel() == 4
