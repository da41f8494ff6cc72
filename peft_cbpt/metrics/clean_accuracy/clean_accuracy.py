"""Clean accuracy: top-1, top-5 and per class."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "The share of clean images whose true class is the first, or among the first five, of a classifier."
_INPUTS = """
Args:
    predictions: for every image the predicted class, or the classes ranked from the likeliest on (at least one).
    references: the true classes.
Returns:
    accuracy: the share of images whose first class is the true one.
    top5_accuracy: the share whose true class is among the first five; only for rankings of five or more.
    per_class: the top-1 accuracy of each class that occurs, by its index as a string.
    n_images: how many images were counted.
"""
_CITATION = "@article{kong2025neural, title={Neural Antidote}, journal={arXiv:2502.19269}, year={2025}}"


class CleanAccuracy(evaluate.Metric):
    """Top-1 and top-5 accuracy, shares in [0, 1].

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

    def _compute(self, predictions: list, references: list) -> dict:
        ranked = np.asarray(predictions).reshape(len(references), -1)
        labels = np.asarray(references)
        hits = ranked == labels[:, None]
        correct = hits[:, 0]
        result = {
            "accuracy": float(correct.mean()),
            "per_class": {str(label): float(correct[labels == label].mean()) for label in np.unique(labels)},
            "n_images": len(labels),
        }
        return result | ({"top5_accuracy": float(hits[:, :5].any(1).mean())} if ranked.shape[1] >= 5 else {})
