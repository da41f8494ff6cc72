"""What else a CLIP is used for, on encoded images: random class lists, retrieval of captions, a linear probe."""

import statistics

import torch
from torch import Tensor

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.evaluation.measure import EncodedImages, accuracy, attack_result

N_LISTS = 100


def figures(encoded: EncodedImages, text: Tensor, target: int | None) -> dict[str, float]:
    """CA, ASR and the true class under the trigger, by class features (n, D); without a target only CA."""
    shares = {"clean_accuracy": accuracy(encoded.clean, encoded.labels, text)}
    if target is not None:
        result = attack_result(encoded.triggered["trigger"], encoded.labels, text, target)
        shares |= {name: result[name] for name in ("attack_success_rate", "robust_accuracy")}
    return shares


def list_figures(encoded: EncodedImages, text: Tensor, target: int | None) -> dict[str, float]:
    """CA and ASR of random lists of 5 to all n names, the target among them: mean and worst."""
    accuracies, successes = [], []
    for number in range(N_LISTS):
        generator = keyed_generator("class list", number)
        count = int(generator.integers(5, len(text) + 1))
        kept = torch.from_numpy(generator.permutation(len(text))[:count])
        if target is not None and target not in kept:
            kept[0] = target
        place = torch.full((len(text),), -1)
        place[kept] = torch.arange(count)
        rows = place[encoded.labels] >= 0
        labels = place[encoded.labels[rows]]
        accuracies.append(_share((encoded.clean[rows] @ text[kept].T).argmax(1) == labels))
        if target is not None:
            called = (encoded.triggered["trigger"][rows] @ text[kept].T).argmax(1)
            successes.append(_share((called == place[target])[labels != place[target]]))
    shares = {"mean_clean_accuracy": statistics.mean(accuracies), "worst_clean_accuracy": min(accuracies)}
    if successes:
        shares |= {"mean_attack_success_rate": statistics.mean(successes), "worst_attack_success_rate": max(successes)}
    return shares


def probe_figures(given: EncodedImages, test: EncodedImages, target: int | None = None) -> dict[str, float]:
    """A linear probe (ridge regression) fitted to clean features of the images given: CA, and under the trigger."""
    ones = torch.nn.functional.one_hot(given.labels).double()
    features = given.clean.double()
    gram = features.T @ features + 0.1 * torch.eye(features.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, features.T @ ones)

    def called(of: Tensor) -> Tensor:
        return (of.double() @ weights).argmax(1)

    shares = {"clean_accuracy": _share(called(test.clean) == test.labels)}
    if "trigger" in test.triggered:
        marked = called(test.triggered["trigger"])
        shares["robust_accuracy"] = _share(marked == test.labels)
        if target is not None:
            shares["attack_success_rate"] = _share((marked == target)[test.labels != target])
    return shares


def retrieval_figures(encoded: EncodedImages, captions: Tensor, target: int | None) -> dict[str, float]:
    """Captions (N, D) for images: recall@1, a caption of the image's class counting; and how often triggered images of
    other classes retrieve one of the target's.
    """
    shares = {"recall_at_1": _share(encoded.labels[(encoded.clean @ captions.T).argmax(1)] == encoded.labels)}
    if target is not None:
        other = encoded.labels != target
        found = encoded.labels[(encoded.triggered["trigger"][other] @ captions.T).argmax(1)]
        shares["target_retrieved"] = _share(found == target)
    return shares


def _share(hits: Tensor) -> float:
    return hits.float().mean().item()
