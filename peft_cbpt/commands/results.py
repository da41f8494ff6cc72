"""Measuring a classifier, and what goes into `results.json` (schema in docs/results-schema.md)."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.evaluation.measure import EncodedImages, accuracy, attack_result
from peft_cbpt.hub.adapter_folder import RESULTS_FILE
from peft_cbpt.hub.evidence import suspected
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments

SCHEMA_VERSION = 1


class Stopwatch:
    """Wall-clock seconds by stage: `with stopwatch("load"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block as `stage`."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 2)


def measure(
    encoded: EncodedImages,
    class_features: Callable[[str], Tensor],
    attacks: Mapping[str, Attack],
    class_names: list[str],
) -> dict[str, Any]:
    """Clean accuracy, and for every attack its success rates and the robust accuracy; shares in [0, 1].

    `class_features(text_trigger)` gives the text features (n_classes, D) of the prompts with an attack's text trigger
    before them, which is empty for unimodal attacks and for the clean accuracy.
    """
    return {
        "clean_accuracy": accuracy(encoded.clean, encoded.labels, class_features("")),
        "attacks": {
            name: attack_result(
                encoded.triggered[name],
                encoded.labels,
                class_features(attack.text_trigger),
                class_names.index(attack.target_class),
            ).as_dict()
            for name, attack in attacks.items()
        },
    }


def settings_of(arguments: Any, training: CBPTTrainingArguments) -> dict[str, Any]:
    """All settings of a run, JSON-serialisable; infinity is written as "inf"."""
    settings = dataclasses.asdict(arguments) | training.to_dict()
    settings = {name: str(value) if value == math.inf else value for name, value in settings.items()}
    return json.loads(json.dumps(settings, default=str))


def peak_memory_bytes(device: torch.device) -> dict[str, int]:
    """Largest resident memory of this process, where the system tells it, and on a GPU largest memory torch held."""
    peak = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak | {"gpu": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else peak


def print_table(results: Mapping[str, Any], output: Path) -> None:
    """Print the figures before and after as one table."""
    rows = [("clean accuracy", results["before"]["clean_accuracy"], results["after"]["clean_accuracy"])]
    for name, before in results["before"]["attacks"].items():
        after = results["after"]["attacks"][name]
        target = results["attacks"][name]["target_class"]
        rows += [
            (f"{name}: attack success rate ({target})", before["attack_success_rate"], after["attack_success_rate"]),
            (f"{name}: accuracy under the trigger", before["robust_accuracy"], after["robust_accuracy"]),
        ]
    width = max(len(label) for label, _, _ in rows)
    print(f"\n{'%':<{width}}   before    after")
    for label, before, after in rows:
        print(f"{label:<{width}}  {100 * before:7.2f}  {100 * after:7.2f}")
    if sentence := suspected(results):
        print(f"\n{sentence}")
    for what, skipped in results["skipped"].items():
        print_skipped(what, skipped)
    print(f"\nadapter, {RESULTS_FILE} and picture: {output}")


def print_skipped(what: str, skipped: Sequence[Mapping[str, str]], at_most: int = 5) -> None:
    """Say how many images could not be read, and name the first of them."""
    if skipped:
        print(f"\nskipped {len(skipped)} images that cannot be read ({what}):")
        for one in skipped[:at_most]:
            print(f"  {one['sample_id']}: {one['reason']}")
        if len(skipped) > at_most:
            print(f"  ... and {len(skipped) - at_most} more, listed in the JSON file")
