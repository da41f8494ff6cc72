"""The encoder's stage of a purification gets what the scan found."""

import pytest
import torch

from peft_cbpt.detection.suspects import Suspect, Suspicion
from peft_cbpt.detection.verdict import FALSE_ALARMS
from peft_cbpt.purification import purify
from peft_cbpt.training import encoder_stage
from tests.conftest import FEW_CLASSES

SHIFT = torch.ones(3)
COMMON, RARE = (Suspect(0, "patch", 0.3, rate, 0.9, direction=SHIFT) for rate in (2 * FALSE_ALARMS, FALSE_ALARMS / 2))
NEVER = Suspect(0, "patch", 0.0, 1.0, 0.9)


@pytest.mark.parametrize(
    "suspicion, rare",
    [(([RARE], []), True), (([], [NEVER, RARE]), True), (([], [COMMON]), False), (([], [NEVER]), False)],
)
def test_a_doubt_counts_for_the_encoder_where_it_is_as_rare_as_a_finding(suspicion, rare):
    assert Suspicion(*suspicion).directions == [SHIFT] * rare


@pytest.mark.parametrize("rare", [True, False])
@pytest.mark.parametrize("only", [None, "encoder"])
def test_the_trainer_gets_the_searches_and_whether_anything_is_suspected(poisoned_clip, monkeypatch, only, rare):
    class Seen(Exception):
        pass

    def trainer(model, args, images, normalize, searches, suspected):
        assert len(images) == len(FEW_CLASSES) and searches and suspected == [SHIFT] * rare
        raise Seen

    monkeypatch.setattr(encoder_stage, "EncoderPurifier", trainer)
    monkeypatch.setattr(Suspicion, "directions", [SHIFT] * rare)
    with pytest.raises(Seen):
        purify(poisoned_clip, "pocket:base", class_names=FEW_CLASSES, num_shots=1, test_images_per_class=1, only=only)
