from functools import partial

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model

from peft_cbpt import CBPTConfig
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.detection.suspects import EVIDENCE, CleanCosines, reach
from peft_cbpt.detection.target_search import (
    PATIENT_BUDGETS,
    PATTERN_BUDGETS,
    SEARCH_BUDGETS,
    SEARCHES,
    FrozenText,
    find_suspects,
    reach_after_words,
    search_for_collapse,
    search_rows,
)
from peft_cbpt.evaluation.measure import encode_in_batches
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.features.store import FeatureStore
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.training.inner_loop import frozen_text

CLASSES = class_names()[:30]


def fitted(name):
    """A shipped model with an adapter for `CLASSES`, its loaded CLIP, and clean images of them."""
    clip = load_clip(resolve_model(name))
    model = get_peft_model(clip.model, CBPTConfig(class_names=CLASSES).tokenize(clip.tokenizer)).eval()
    images = LabelledImages(pocket_dataset("base", "train", 4, CLASSES), clip.image_processor)
    pixels = torch.stack([images[row]["pixel_values"] for row in range(len(images))]).float() / 255
    labels = torch.tensor([images[row]["labels"] for row in range(len(images))])
    return clip, model, pixels, labels


@pytest.mark.parametrize(("per_class", "n"), [(1, 5), (20, 32)])
def test_search_images_are_of_as_many_classes_as_there_are(per_class, n):
    labels = torch.arange(5).repeat_interleave(per_class)
    rows = search_rows(labels, keyed_generator("rows"))
    assert len(rows) == len(set(rows)) == n
    counts = labels[rows].bincount(minlength=5)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("name", "suspects"), [("pocket:badnet", [CLASSES.index("banana")]), ("pocket:clean", [])])
def test_the_target_of_the_shipped_backdoor_is_found_and_none_on_the_clean_model(name, suspects):
    clip, model, pixels, labels = fitted(name)
    encode = image_encoder(clip.model, clip.normalize)
    bank = FeatureBank(encode_in_batches(encode, pixels), labels, [])
    with torch.no_grad(), model.disable_adapter():
        search = partial(search_for_collapse, encode, lambda rows: pixels[list(rows)], bank, 0, FeatureStore())
        found = find_suspects(search, bank, frozen_text(model))
    assert [one.label for one in found.suspects] == suspects and bool(found.candidates) == (not suspects)


def test_searches_are_kept_and_not_made_twice():
    bank = FeatureBank(torch.eye(8), torch.arange(8), [])
    pixels = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(48, 8, generator=torch.Generator().manual_seed(1))
    calls = []

    def encode(images):
        calls.append(len(images))
        return F.normalize(images.flatten(1) @ weight, dim=1)

    store = FeatureStore()
    arguments = (encode, lambda rows: pixels[list(rows)], bank, 0)
    found = search_for_collapse(*arguments, store, SEARCH_BUDGETS)
    assert list(found) == list(SEARCH_BUDGETS) and calls and len(store) == SEARCHES * len(SEARCH_BUDGETS)
    assert all(len(one) == SEARCHES and one[0].shape == (8, 8) for one in found.values())
    calls.clear()

    def same(one, other):
        return all(torch.equal(*pair) for budget in one for pair in zip(one[budget], other[budget], strict=True))

    assert same(found, search_for_collapse(*arguments, store, SEARCH_BUDGETS)) and not calls
    patient = search_for_collapse(*arguments, store, PATIENT_BUDGETS)
    assert list(patient) == list(PATIENT_BUDGETS)
    assert len(calls) == SEARCHES * sum(budget.steps + 1 for budget in PATIENT_BUDGETS)
    assert same(found, search_for_collapse(*arguments, FeatureStore(), SEARCH_BUDGETS))


def test_the_frozen_text_is_that_of_the_base_model():
    clip, model, _, _ = fitted("pocket:clean")
    word = clip.tokenizer("dog", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad(), model.disable_adapter():
        text = frozen_text(model)
        found = [text.class_features[3], text.encode_prompts(word)[3], text.encode_words(torch.tensor([word]))[0]]
    texts = [f"a photo of a {CLASSES[3]}.", f"dog a photo of a {CLASSES[3]}.", "dog"]
    for features, one in zip(found, texts, strict=True):
        ids = clip.tokenizer(one, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = F.normalize(
                clip.model.get_text_features(input_ids=ids, return_dict=True).pooler_output[0], dim=0
            )
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert len(text.words) == len(clip.tokenizer) - 2 and word in text.words


def test_a_key_in_the_text_is_found():
    """The last word of the vocabulary brings class 2 to the images of the first search, and is near them."""
    names, image = torch.eye(8)[:4], F.normalize(torch.ones(8), dim=0)
    words = F.normalize(torch.eye(8)[torch.arange(5000) % 8], dim=1)

    def encode_prompts(word):
        return torch.where(torch.arange(4)[:, None] == 2, image, names) if word == 4999 else names

    def encode_words(ids):
        return torch.where(ids[:, None] == 4999, image, words[ids])

    text = FrozenText(names, torch.arange(5000), encode_words, encode_prompts)
    clean = CleanCosines(torch.full((4,), 0.8), 0.0, 0.1)
    searches = [image.expand(6, 8), torch.eye(8)[7].expand(6, 8)]
    first, second = reach_after_words(searches, text, clean)
    assert first.argmax() == 2 and first[2] == pytest.approx(1 / 0.8)
    assert first[0] == pytest.approx(reach(searches[0], names, clean)[0]) and second.abs().max() < 0.5


NAMES, ELSEWHERE = torch.eye(12)[:4], torch.eye(12)[8:9]


def images_near(name, cosine):
    return cosine * NAMES[name : name + 1] + (1 - cosine**2) ** 0.5 * ELSEWHERE


def suspects_of(near, evidence=EVIDENCE):
    """The suspects, and the budgets asked for; `near` has by budget an image and elsewhere searches find nothing.

    Names and images are axes: reach is the cosine.
    """
    asked = []

    def search(budgets):
        asked.extend(budgets)
        return {one: [near.get(one, ELSEWHERE)] + [ELSEWHERE] * (SEARCHES - 1) for one in budgets}

    text = FrozenText(NAMES, torch.tensor([], dtype=torch.int64), lambda ids: ids, lambda word: NAMES)
    found = find_suspects(search, FeatureBank(NAMES, torch.arange(4), []), text, evidence).suspects
    return [(one.label, one.evidence) for one in found], asked


FIRST, PATTERN, PATIENT = SEARCH_BUDGETS[0], PATTERN_BUDGETS[0], PATIENT_BUDGETS[0]
FIRST_ASKED = [*SEARCH_BUDGETS, *PATTERN_BUDGETS]


@pytest.mark.parametrize(
    ("budget", "cosine", "found"),
    [
        (FIRST, 0.79, [(2, "collapse")]),
        (FIRST, 0.7, []),
        (PATTERN, 0.7, [(2, "pattern")]),
        (PATTERN, 0.6, []),
    ],
)
def test_searches_are_told_apart_by_their_budget(budget, cosine, found):
    assert suspects_of({budget: images_near(2, cosine)})[0] == found


@pytest.mark.parametrize(("first", "found"), [(0.7, [(1, "collapse")]), (0.8, [(2, "collapse")])])
def test_the_search_is_patient_only_where_nothing_was_found(first, found):
    near = {FIRST: images_near(2, first), PATIENT: images_near(1, 0.9)}
    patient = list(PATIENT_BUDGETS) if first == 0.7 else []
    assert suspects_of(near) == (found, [*FIRST_ASKED, *patient])


@pytest.mark.parametrize(
    ("evidence", "found", "patient"),
    [(["collapse"], [(1, "collapse")], True), (["pattern", "words"], [(2, "pattern")], False), (["words"], [], False)],
)
def test_evidence_that_does_not_count_finds_nothing(evidence, found, patient):
    near = {PATTERN: images_near(2, 0.9), PATIENT: images_near(1, 0.9)}
    assert suspects_of(near, evidence) == (found, FIRST_ASKED + (list(PATIENT_BUDGETS) if patient else []))
