import pytest
import torch

from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.evaluation import encode_in_batches, template_text_features
from peft_cbpt.purification.feature_bank import FeatureBank
from peft_cbpt.purification.feature_store import FeatureStore
from peft_cbpt.purification.universal_features import TRIGGER_BUDGETS, UniversalFeatures, universal_triggers
from tests.conftest import FEW_CLASSES


@pytest.fixture
def clip(poisoned_clip):
    poisoned_clip.model.requires_grad_(False)
    return poisoned_clip


def test_triggers_and_features_are_kept_and_not_made_twice(clip, few_shots):
    calls = []
    encoder = image_encoder(clip.model, clip.normalize)

    def encode(pixels):
        calls.append(len(pixels))
        return encoder(pixels)

    pixels = torch.stack([few_shots[row]["pixel_values"] for row in range(len(few_shots))]).float() / 255
    labels = torch.tensor([few_shots[row]["labels"] for row in range(len(few_shots))])
    bank = FeatureBank(encode_in_batches(encoder, pixels), labels, [])
    text = template_text_features(clip.model, clip.tokenizer, FEW_CLASSES)
    kept, features = FeatureStore(), FeatureStore()

    def load(rows):
        return pixels[list(rows)]

    def triggers_towards(targets):
        return universal_triggers(encode, load, bank, text, targets, kept, 0)

    triggers = triggers_towards([0])
    assert set(triggers) == {(0, budget) for budget in range(len(TRIGGER_BUDGETS))}
    norms = [triggers[0, budget].square().mean().sqrt().item() for budget in range(len(TRIGGER_BUDGETS))]
    assert norms == pytest.approx([budget.rms for budget in TRIGGER_BUDGETS], rel=0.05)
    universal = UniversalFeatures(encode, load, triggers, features, batch_size=7)
    keys = torch.tensor([[row, 0, len(TRIGGER_BUDGETS) - 1] for row in range(len(pixels))])
    universal.fetch(keys, torch.device("cpu"))
    assert (universal.look_up(keys) @ text[0]).mean() > (bank.features @ text[0]).mean() + 0.2
    expected = encoder((pixels + triggers[0, len(TRIGGER_BUDGETS) - 1]).clamp(0, 1))
    torch.testing.assert_close(universal.look_up(keys), expected, rtol=0, atol=1e-5)
    calls.clear()
    universal.fetch(keys[5:9], torch.device("cpu"))
    again = triggers_towards([0])
    assert not calls and all(torch.equal(again[job], delta) for job, delta in triggers.items())
    assert triggers_towards([]) == {}
    universal.fetch(torch.tensor([[3, 0, 0], [3, 0, 1]]), torch.device("cpu"))
    assert calls == [2] and len(features) == len(pixels) + 2
