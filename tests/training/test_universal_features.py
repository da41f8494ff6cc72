import pytest
import torch

from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.detection.suspects import Suspect
from peft_cbpt.evaluation.measure import encode_in_batches, template_text_features
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.features.store import FeatureStore
from peft_cbpt.training.universal_features import (
    TRIGGER_BUDGETS,
    UniversalFeatures,
    budgets_against,
    find_universal_triggers,
)
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

    def triggers_towards(*suspects):
        return find_universal_triggers(encode, load, bank, text, suspects, kept, 0)

    banana = Suspect(0, "words", 0.9)
    triggers = triggers_towards(banana)
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
    again = triggers_towards(banana)
    assert not calls and all(torch.equal(again[job], delta) for job, delta in triggers.items())
    assert triggers_towards() == {}
    universal.fetch(torch.tensor([[3, 0, 0], [3, 0, 1]]), torch.device("cpu"))
    assert calls == [2] and len(features) == len(pixels) + 2


def test_patterns_go_against_suspects_that_no_other_trigger_showed():
    kinds = {"collapse": False, "pattern": True, "words": True}
    for evidence, patterns in kinds.items():
        used = TRIGGER_BUDGETS[: budgets_against(Suspect(0, evidence, 0.9))]
        assert any(budget.pattern for budget in used) == patterns
        assert all(budget in used for budget in TRIGGER_BUDGETS if not budget.pattern)
