import pytest
import torch

from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.detection.families import Patch, Warp
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.suspects import Suspect
from peft_cbpt.evaluation.measure import encode_in_batches, template_text_features
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.features.store import FeatureStore
from peft_cbpt.training.universal_features import UniversalFeatures, digest, find_universal_triggers, kinds_against
from tests.conftest import FEW_CLASSES

pytestmark = pytest.mark.usefixtures("all_triggers")


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

    banana = Suspect(0, "patch", 0.4, 1e-4, 0.9, (Patch(0.1), Warp(0.04)))
    triggers = triggers_towards(banana)
    kinds = kinds_against(banana)
    assert [one.kind for one in triggers.values()] == list(kinds) and kinds[-2:] == banana.kinds
    assert set(triggers) == {(0, number) for number in range(len(kinds))}
    for trigger in list(triggers.values())[: -len(banana.kinds)]:
        assert trigger.mark.square().mean().sqrt().item() == pytest.approx(trigger.kind.size, rel=0.05)
    universal = UniversalFeatures(encode, load, triggers, features, batch_size=7)
    keys = torch.tensor([[row, 0, number] for row in range(len(pixels)) for number in (2, 3)])
    universal.fetch(keys, torch.device("cpu"))
    assert (universal.look_up(keys) @ text[0]).mean() > (bank.features @ text[0]).mean() + 0.2
    for number in (2, 3):
        own = keys[keys[:, 2] == number]
        expected = encoder(triggers[0, number](pixels))
        torch.testing.assert_close(universal.look_up(own), expected, rtol=0, atol=1e-5)
    calls.clear()
    universal.fetch(keys[5:9], torch.device("cpu"))
    again = triggers_towards(banana)
    assert not calls and all(torch.equal(again[job].mark, one.mark) for job, one in triggers.items())
    universal.fetch(torch.tensor([[3, 0, 0], [3, 0, 1]]), torch.device("cpu"))
    assert calls == [2] and len(features) == len(keys) + 2


def test_the_digest_tells_triggers_apart_and_not_their_last_digits():
    mark = torch.full((3, 4, 4), 0.1)
    one, near, other = (FoundTrigger(Patch(0.1), mark + shift) for shift in (0, 1e-6, 1e-2))
    assert digest({(0, 0): one}) == digest({(0, 0): near}) != digest({(0, 0): other})
    assert digest({(0, 0): one}) != digest({(0, 0): FoundTrigger(Patch(0.2), mark)})
