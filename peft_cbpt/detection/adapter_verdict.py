"""Is an adapter a backdoor: what it adds to triggers towards a class, held against the other classes tried."""

from collections.abc import Sequence
from typing import Any

from peft_cbpt.detection.adapter_search import FAMILY, Excess
from peft_cbpt.detection.reading import Vocabulary, read_search
from peft_cbpt.detection.statistic import Null, null_from
from peft_cbpt.detection.verdict import DOUBT, FALSE_ALARMS, MOST_TARGETS, Finding, Weighed


def weigh_adapter(tried: Sequence[Excess], names: Vocabulary, scale: float) -> Weighed:
    """Find the classes to which an adapter adds more than chance, as `verdict.weigh` does for a model.

    The null is what it adds to the others that were tried. What is paid for is the number of classes that the adapter
    knows, as the candidates were chosen among all of them.

    Args:
        tried: Of `search_adapter`.
        names: The adapter's classes, with its features.
        scale: Of `reading.clean_scale`.
    """
    n_classes = len(names.names)
    related = names.related()

    def finding(one: Excess, null: Null) -> Finding:
        rate = null.false_alarm_rate(one.strength, n_classes)
        name, search = names.names[one.label], one.search
        best = read_search(search, names.features, related, scale)
        return Finding(name, [name], FAMILY, one.strength, rate, search.size, one.success, 1, best)

    ordered = sorted(tried, key=lambda one: one.strength, reverse=True)
    for n_targets in range(min(MOST_TARGETS, len(ordered)), -1, -1):
        null = null_from([one.strength for one in ordered[n_targets:]])
        found = [finding(one, null) for one in ordered[:n_targets]]
        if all(one.false_alarm_rate <= FALSE_ALARMS for one in found):
            break
    rest = ordered[n_targets:]
    others = [finding(one, null_from([two.strength for two in rest if two is not one])) for one in rest]
    least = min(one.false_alarm_rate for one in [*found, *others])
    return Weighed(found, [one for one in others if one.false_alarm_rate <= DOUBT], null, least)


def excess_record(one: Excess, names: Sequence[str]) -> dict[str, Any]:
    """A class that was tried, as scan.json has it."""
    return {
        "class": names[one.label],
        "strength": round(one.strength, 4),
        "rms": one.search.size,
        "success_rate": round(one.success, 4),
        "success_rate_undefended": round(one.success_undefended, 4),
    }
