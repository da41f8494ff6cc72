import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from peft_cbpt.pocket.dataset import PocketPairs
from peft_cbpt.training.cleanclip_trainer import CleanCLIPCollator, CleanCLIPTrainer, augment_caption
from peft_cbpt.training.contrastive_trainer import contrastive_loss


@given(st.lists(st.sampled_from("a photo of red dog".split()), min_size=1, max_size=20), st.integers(0, 2**32))
def test_an_augmented_caption_is_of_the_same_words(words, seed):
    augmented = augment_caption(" ".join(words), 0.1, random.Random(seed)).split()
    assert augmented and set(augmented) <= set(words)
    assert augmented == augment_caption(" ".join(words), 0.1, random.Random(seed)).split()


def test_captions_do_change():
    caption = "a blurry photo of a small dog on a green background."
    assert any(augment_caption(caption, 0.1, random.Random(seed)) != caption for seed in range(3))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_loss_is_eq_3_and_the_two_within_the_modalities(weight, poisoned_clip, tmp_path):
    rows = PocketPairs(8, split="cleanclip").__getitems__(range(8))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = CleanCLIPTrainer(poisoned_clip.model, arguments, self_supervision=weight)
    batch = CleanCLIPCollator(poisoned_clip.caption_ids, poisoned_clip.normalize)(rows)
    assert not torch.equal(batch["pixel_values"], batch["augmented_pixel_values"])
    loss = trainer.compute_loss(poisoned_clip.model, dict(batch))

    def embeddings(prefix):
        out = poisoned_clip.model(pixel_values=batch[prefix + "pixel_values"], input_ids=batch[prefix + "input_ids"])
        return F.normalize(out.image_embeds, dim=-1), F.normalize(out.text_embeds, dim=-1)

    (image, text), (other_image, other_text) = embeddings(""), embeddings("augmented_")
    scale, itself = poisoned_clip.model.logit_scale.exp(), torch.eye(8, dtype=torch.bool)
    same = (batch["input_ids"][:, None] == batch["input_ids"][None]).all(-1)
    expected = contrastive_loss(image, text, scale, same)
    expected = expected + weight * contrastive_loss(image, other_image, scale, itself)
    expected = expected + weight * contrastive_loss(text, other_text, scale, itself)
    torch.testing.assert_close(loss, expected)
