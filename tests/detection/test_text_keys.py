import torch
import torch.nn.functional as F

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import Colour, ImageWide, Patch
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.ladder import Search
from peft_cbpt.detection.reading import Vocabulary
from peft_cbpt.detection.text_keys import KeyCandidates, read_after_words

DIM, WORDS = 64, [f"word {number}" for number in range(400)]


def unit(seed, n):
    return F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


NAMES = Vocabulary([f"name {number}" for number in range(60)], 60, unit(0, 60))
ALONE = unit(1, 400)
TARGET = F.normalize(ALONE[7] + unit(6, 1)[0], dim=0)


def prompts_after(word):
    """A word moves all names a little its own way, and one name to where triggered images are."""
    features = NAMES.features + 0.3 * ALONE[word]
    features[3] += 6 * (ALONE[word] @ TARGET).clamp(min=0) * TARGET
    return F.normalize(features, dim=1)


def searches_towards(direction):
    kinds = {"image-wide": ImageWide(0.1), "patch": Patch(0.1), "colour": Colour(0.1)}
    clean = unit(2, 16)
    features = F.normalize(0.45 * clean + 0.55 * direction, dim=1)
    return [Search(family, 0, FoundTrigger(kind, torch.zeros(1)), features, clean) for family, kind in kinds.items()]


def read(searches, prompts=prompts_after):
    return read_after_words(searches, NAMES, KeyCandidates(WORDS, ALONE, prompts), 1.0, keyed_generator("keys"))


def test_a_name_that_is_reached_after_its_key_only_is_told_with_a_key():
    surest = read(searches_towards(TARGET))[0]
    assert NAMES.names[surest.reading.name] == "name 3"
    assert ALONE[WORDS.index(surest.word)] @ TARGET > 0.2
    assert surest.false_alarm_rate < 0.05 and surest.reading.success == 1


def test_a_word_that_brings_all_names_near_makes_nothing_of_any():
    def every_name_after(word):
        return F.normalize(NAMES.features + (2.0 if word == 7 else 0.3) * ALONE[word], dim=1)

    assert all(one.false_alarm_rate > 0.05 for one in read(searches_towards(TARGET), every_name_after))


def test_where_images_go_to_no_name_no_word_makes_one_of_it():
    assert all(one.false_alarm_rate > 0.05 for one in read(searches_towards(unit(5, 1)[0])))
