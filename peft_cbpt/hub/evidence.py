"""Measured figures in the two forms the Hub reads: `model-index` of a card, and `.eval_results`."""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

TASK = "zero-shot-image-classification"


def moments(results: Mapping[str, Any]) -> dict[str, str]:
    """The key in results of everything that was measured, and what to call it, in order."""
    titles = {"before": "before"}
    if results.get("encoder") and results["settings"].get("only") != "encoder":
        titles["encoder"] = "encoder alone"
    return titles | {"after": "after"}


def figure_rows(results: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """Label, and share in % at all `moments`, for every figure that purify measured."""
    figures = [results[moment] for moment in moments(results)]
    rows = [("clean accuracy", [one["clean_accuracy"] for one in figures])]
    for name, attack in results["attacks"].items():
        for key, label in (("attack_success_rate", "attack success"), ("robust_accuracy", "accuracy under trigger")):
            shares = [one["attacks"][name][key] for one in figures]
            rows.append((f"{name} (target: {attack['target_class']}): {label}", shares))
    return [(label, [100 * share for share in shares]) for label, shares in rows]


def measured_dataset(results: Mapping[str, Any]) -> str:
    """Name of the dataset that was measured on."""
    settings = results["settings"]
    return settings.get("test_dataset_name") or settings["dataset_name"]


def is_hub_dataset(name: str) -> bool:
    """Whether a dataset's name in results, where local paths are cut to their last part, is a Hub id."""
    return name.count("/") == 1


def model_index(results: Mapping[str, Any]) -> list[EvalResult]:
    """The purified classifier's figures as `EvalResult`s, shares in [0, 1]."""
    dataset = measured_dataset(results)

    def entry(kind: str, name: str, value: float) -> EvalResult:
        return EvalResult(
            task_type=TASK,
            task_name="Zero-Shot Image Classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=results["settings"].get("test_split"),
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 6),
        )

    after = results["after"]
    entries = [entry("accuracy", "clean accuracy", after["clean_accuracy"])]
    for attack, figures in after["attacks"].items():
        entries.append(entry("attack_success_rate", f"{attack}: attack success rate", figures["attack_success_rate"]))
        entries.append(entry("robust_accuracy", f"{attack}: accuracy under trigger", figures["robust_accuracy"]))
    return entries


def eval_results_file(results: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """Path and content of the `.eval_results` file: clean accuracy on a dataset of the Hub; None for other data.

    An attack success rate is no benchmark of a dataset and stays in the card.
    """
    dataset = measured_dataset(results)
    if not is_hub_dataset(dataset):
        return None
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=TASK,
        value=round(100 * results["after"]["clean_accuracy"], 2),
        date=results["date"],
        notes=f"top-1 in % over {len(results['class_names'])} classes, {results['n_test_images']} images, "
        f"split {results['settings'].get('test_split')}",
    )
    content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return f".eval_results/{dataset.replace('/', '__')}.yaml", content.encode()


def suspected(results: Mapping[str, Any]) -> str | None:
    """One sentence on what the scan found; None if it was not made."""
    found = results.get("suspects")
    if found is None:
        return None
    if not found["suspects"]:
        names = ", ".join(one["class"] for one in found["candidates"])
        return (
            "The scan names no class as the target of a backdoor: if there is one, it may have outlived this. Dummy "
            f"triggers aimed at the classes that came nearest, which accuses none of them: {names}."
        )
    names = ", ".join(
        f"{one['class']} (by {one['kind']}, score {one['score']:.2f}, false-alarm rate {one['false_alarm_rate']:.1g})"
        for one in found["suspects"]
    )
    return f"The scan names, and dummy triggers aimed at: {names}."
