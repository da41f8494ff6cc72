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
    """A word changes nothing, but that the key turns one name's prompt to where triggered images are."""
    features = NAMES.features.clone()
    if word == 7:
        features[3] = TARGET
    return features


def searches_towards(direction):
    kinds = {"image-wide": ImageWide(0.1), "patch": Patch(0.1), "colour": Colour(0.1)}
    clean = unit(2, 16)
    features = F.normalize(0.45 * clean + 0.55 * direction, dim=1)
    return [Search(family, 0, FoundTrigger(kind, torch.zeros(1)), features, clean) for family, kind in kinds.items()]


def read(searches):
    return read_after_words(searches, NAMES, KeyCandidates(WORDS, ALONE, prompts_after), 1.0, keyed_generator("keys"))


def test_a_name_that_is_reached_after_its_key_only_is_told_with_the_key():
    surest = read(searches_towards(TARGET))[0]
    assert (surest.word, NAMES.names[surest.reading.name]) == ("word 7", "name 3")
    assert surest.false_alarm_rate < 0.2


def test_where_images_go_to_no_name_no_word_makes_one_of_it():
    assert all(one.false_alarm_rate > 0.2 for one in read(searches_towards(unit(5, 1)[0])))
