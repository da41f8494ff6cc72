"""Attack success rate: in both conventions, per class, and the accuracy that is left under the trigger."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "The share of triggered images that a classifier calls the attacker's target class."
_INPUTS = """
Args:
    predictions: for every triggered image the predicted class, or the classes ranked from the likeliest on.
    references: the true classes.
    target: the attacker's target class, or one for every image, as of an all-to-all attack.
Returns:
    attack_success_rate: the share of images of the other classes that are called the target.
    attack_success_rate_published: the share of all images, those of the target class included.
    robust_accuracy: the share of images of the other classes that are called what they are.
    per_class: the share of each class that is called the target, by its index as a string.
    n_images: how many images were counted, those of the target class included.
"""
_CITATION = "@article{kong2025neural, title={Neural Antidote}, journal={arXiv:2502.19269}, year={2025}}"


class AttackSuccessRate(evaluate.Metric):
    """How often a trigger wins, shares in [0, 1].

    For several processes gather first (`accelerator.gather_for_metrics`), then `add_batch` in one of them.
    """

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": datasets.Sequence(label), "references": label}),
                datasets.Features({"predictions": label, "references": label}),
            ],
        )

    def _compute(self, predictions: list, references: list, target: int | list) -> dict:
        predicted = np.asarray(predictions).reshape(len(references), -1)[:, 0]
        labels = np.asarray(references)
        targets = np.broadcast_to(target, labels.shape)
        others = labels != targets
        if not others.any():
            raise ValueError(f"all images are of the target class {targets[0]}: the attack cannot be measured on them")
        called_target = predicted == targets
        return {
            "attack_success_rate": float(called_target[others].mean()),
            "attack_success_rate_published": float(called_target.mean()),
            "robust_accuracy": float((predicted == labels)[others].mean()),
            "per_class": {str(label): float(called_target[labels == label].mean()) for label in np.unique(labels)},
            "n_images": len(labels),
        }
