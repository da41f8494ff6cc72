"""What `scan.json` holds: see docs/scan.md for its keys."""

from typing import Any

from peft_cbpt.detection.adapter_search import SIZES, SOFTNESS, TRIED_CLASSES
from peft_cbpt.detection.ladder import CLIMBS, JUDGED_IMAGES, SEARCH_IMAGES
from peft_cbpt.detection.reading import RELATED, Reading, Vocabulary
from peft_cbpt.detection.statistic import MOVED, USUAL_COUNT, USUAL_STRENGTH
from peft_cbpt.detection.text_keys import KeyReading
from peft_cbpt.detection.verdict import DOUBT, FALSE_ALARMS, Finding


def finding_record(finding: Finding) -> dict[str, Any]:
    """A finding or a doubt."""
    return {
        "class": finding.name,
        "words": finding.words,
        "kind": finding.kind,
        "score": round(finding.score, 4),
        "false_alarm_rate": float(f"{finding.false_alarm_rate:.3g}"),
        "rms": finding.rms,
        "success_rate": round(finding.success_rate, 4),
        "n_searches": finding.n_searches,
    }


def search_record(reading: Reading, vocabulary: Vocabulary) -> dict[str, Any]:
    """A search and what it names."""
    return {
        "family": reading.search.family,
        "number": reading.search.number,
        "rms": reading.search.size,
        "nearest": vocabulary.names[reading.name],
        "reach": round(reading.reach, 4),
        "lead": round(reading.lead, 4),
        "strength": round(reading.strength, 4),
        "success_rate": round(reading.success, 4),
    }


def key_record(key: KeyReading, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a search names after a word."""
    return {
        "word": key.word,
        "nearest": vocabulary.names[key.reading.name],
        "score": round(key.score, 4),
        "false_alarm_rate": float(f"{key.false_alarm_rate:.3g}"),
    }


def scan_settings(template: str, seed: int, n_images: int) -> dict[str, Any]:
    """What a scan was made with, its constants among them."""
    return {
        "template": template,
        "seed": seed,
        "n_images": n_images,
        "search_images": SEARCH_IMAGES,
        "judged_images": JUDGED_IMAGES,
        "n_climbs": len(CLIMBS),
        "false_alarm_rate_of_a_finding": FALSE_ALARMS,
        "false_alarm_rate_of_a_doubt": DOUBT,
        "related": RELATED,
        "moved": MOVED,
        "usual_strength": USUAL_STRENGTH,
        "usual_count": USUAL_COUNT,
        "adapter_sizes": list(SIZES),
        "adapter_softness": list(SOFTNESS),
        "adapter_tried_classes": TRIED_CLASSES,
    }
