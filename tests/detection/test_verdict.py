"""The verdict on made-up searches: a name that several searches lead to is found, chance is not."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.detection.families import ImageWide, Patch, Pattern, Warp
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.ladder import Search
from peft_cbpt.detection.reading import Reading, Vocabulary, read_all
from peft_cbpt.detection.statistic import Null, null_of
from peft_cbpt.detection.suspects import suspicion_from
from peft_cbpt.detection.verdict import weigh

DIM, N_NAMES = 64, 200


def vocabulary(n_listed=20, seed=0):
    features = F.normalize(torch.randn(N_NAMES, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)
    return Vocabulary([f"name {number}" for number in range(N_NAMES)], n_listed, features)


def search_towards(direction, part=0.9, number=0, seed=0):
    """A search that brings images, a part of the way, to a direction (D,)."""
    generator = torch.Generator().manual_seed(seed)
    clean = F.normalize(torch.randn(16, DIM, generator=generator), dim=1)
    features = F.normalize((1 - part) * clean + part * direction, dim=1)
    kind = (ImageWide(0.036), Patch(0.1), Pattern(0.1))[seed % 3]
    return Search("image-wide", number, FoundTrigger(kind, torch.zeros(3, 4, 4)), features, clean)


def random_searches(n, seed=1):
    """Searches that end between many names, as those of clean models."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(n, DIM, generator=generator), dim=1)
    return [search_towards(direction, 0.6, number, number + 100) for number, direction in enumerate(directions)]


def weighed(searches, names):
    return weigh(read_all(searches, names, 1.0), names)


def test_nobody_is_found_by_chance():
    found = [weighed(random_searches(20, seed), vocabulary(seed=seed)).answer for seed in range(20)]
    assert found.count("backdoored") == 0


def test_a_name_that_several_searches_lead_to_is_found_first():
    names = vocabulary()
    towards = [search_towards(names.features[7], number=number, seed=number) for number in range(4)]
    result = weighed([*random_searches(16), *towards], names)
    assert result.answer == "backdoored" and [one.name for one in result.findings] == ["name 7"]
    assert result.findings[0].false_alarm_rate < 0.01 and result.findings[0].success_rate == 1


def test_one_search_alone_accuses_nobody():
    names = vocabulary()
    result = weighed([*random_searches(16), search_towards(names.features[7])], names)
    assert result.answer == "clean"


def test_triggers_of_one_kind_are_a_doubt_at_most():
    """Patches at two places may find the same natural thing."""
    names = vocabulary()
    patches = [search_towards(names.features[7], seed=seed) for seed in (1, 4, 7)]
    result = weighed([*random_searches(16), *patches], names)
    assert result.answer == "unsure" and [one.name for one in result.doubts] == ["name 7"]


def test_two_targets_are_two_findings():
    names = vocabulary()
    towards = [search_towards(names.features[at], number=at, seed=seed) for at in (3, 11) for seed in range(3)]
    found = weighed([*random_searches(16), *towards], names).findings
    assert sorted(one.name for one in found) == ["name 11", "name 3"]


def test_a_target_outside_the_list_is_told_by_the_nearest_words():
    names = vocabulary()
    towards = [search_towards(names.features[90], seed=seed) for seed in range(3)]
    (found,) = weighed([*random_searches(16), *towards], names).findings
    assert found.name is None and found.words[0] == "name 90"


def test_the_verdict_does_not_depend_on_which_names_are_listed():
    names = vocabulary()
    searches = [*random_searches(16), *(search_towards(names.features[7], seed=seed) for seed in range(3))]
    rates = {weighed(searches, replace(names, n_listed=n)).findings[0].false_alarm_rate for n in (5, 8, 200)}
    assert len(rates) == 1


def test_near_synonyms_count_as_one():
    names = vocabulary()
    twin = F.normalize(names.features[7] + 0.05 * names.features[8], dim=0)
    features = torch.cat([names.features[:-1], twin[None]])
    both = replace(names, features=features)
    towards = [search_towards(features[7], seed=seed) for seed in range(3)]
    (found,) = weighed([*random_searches(16), *towards], both).findings
    assert found.name == "name 7"


@pytest.mark.parametrize("lead", [0.0, 0.05, 0.3])
def test_a_larger_lead_is_a_rarer_one_and_more_searches_make_it_less_rare(lead):
    null = Null(30, 1.2)
    assert null.false_alarm_rate(lead + 0.1, 1) < null.false_alarm_rate(lead, 1)
    assert null.false_alarm_rate(lead + 0.1, 30) >= null.false_alarm_rate(lead + 0.1, 1)


def test_the_null_is_the_models_own():
    search = search_towards(torch.ones(DIM))
    few, many = ([Reading(search, 0, 0.6, lead, 0.5)] * 30 for lead in (0.002, 0.2))
    assert null_of(few).false_alarm_rate(0.4, 10) < 0.001 < null_of(many).false_alarm_rate(0.4, 10)


def test_false_alarms_of_exponential_leads_are_as_rare_as_said():
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(500):
        leads = torch.empty(30).exponential_(1 / 0.04, generator=generator)
        null = Null(30, leads[1:].sum().item() + 0.04)
        alarms += null.false_alarm_rate(leads[0].item(), 1) < 0.1
    assert 0.06 < alarms / 500 < 0.14


def test_suspicion_is_of_the_users_classes_and_candidates_where_nobody_is_found(all_triggers):
    names = vocabulary()
    towards = [search_towards(names.features[7], seed=seed) for seed in range(3)]
    readings = read_all([*random_searches(16), *towards], names, 1.0)
    found = suspicion_from(weigh(readings, names), readings, names)
    assert [one.label for one in found.suspects] == [7] and found.candidates == []
    readings = read_all(random_searches(16), names, 1.0)
    nobody = suspicion_from(weigh(readings, names), readings, names)
    assert nobody.suspects == [] and nobody.aims == nobody.candidates
    assert len({one.label for one in nobody.candidates}) == 4 and max(one.label for one in nobody.candidates) < 20


def test_what_showed_a_class_is_aimed_with():
    names = vocabulary()
    shown = [search_towards(names.features[7], part, seed=seed) for seed, part in enumerate((0.7, 0.9, 0.8))]
    kinds = (ImageWide(0.036), Patch(0.1), Warp(0.04))
    marks = [
        replace(one, trigger=FoundTrigger(kind, one.trigger.mark)) for one, kind in zip(shown, kinds, strict=True)
    ]
    readings = read_all([*random_searches(16), *marks], names, 1.0)
    (suspect,) = suspicion_from(weigh(readings, names), readings, names).suspects
    assert suspect.kinds == (Patch(0.1), Warp(0.04)) and suspect.false_alarm_rate < 0.01


def test_there_are_candidates_of_a_short_list_too(all_triggers):
    names = replace(vocabulary(), n_listed=2)
    readings = read_all(random_searches(16), names, 1.0)
    found = suspicion_from(weigh(readings, names), readings, names)
    assert {one.label for one in found.candidates} == {0, 1}
