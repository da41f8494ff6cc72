"""The before/after picture: bars of the measured figures, and examples with what the model calls them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.data import Dataset

from peft_cbpt.attacks import apply_trigger, trigger_from_config
from peft_cbpt.common.files import write_bytes
from peft_cbpt.evaluation.measure import EncodedImages
from peft_cbpt.reports.bars import before_after_bars
from peft_cbpt.reports.style import AFTER, BEFORE, new_figure, png_bytes

PICTURE_FILE = "before_after.png"
N_EXAMPLES = 4


def _bars(axes: Axes, labels: Sequence[str], before: Sequence[float], after: Sequence[float]) -> None:
    before_after_bars(axes, labels, before, after)
    axes.set_ylim(0, 118)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.12), fontsize=9)


def _example(axes: Axes, pixels: Tensor, title: str, before: str, after: str) -> None:
    axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9)
    axes.text(0.5, -0.06, before, color=BEFORE, fontsize=8.5, ha="center", va="top", transform=axes.transAxes)
    axes.text(0.5, -0.20, after, color=AFTER, fontsize=8.5, ha="center", va="top", transform=axes.transAxes)


def _example_rows(labels: Tensor, target_label: int) -> list[int]:
    """First images of `N_EXAMPLES` classes spread over those that are not the target."""
    others = [label for label in labels.unique().tolist() if label != target_label]
    spread = others[:: max(1, len(others) // N_EXAMPLES)][:N_EXAMPLES]
    return [int((labels == label).nonzero()[0]) for label in spread]


def draw_before_after(
    file: Path,
    images: Dataset,
    results: Mapping[str, Any],
    before: tuple[EncodedImages, Callable[[str], Tensor]],
    after: tuple[EncodedImages, Callable[[str], Tensor]],
) -> None:
    """Draw the picture to a PNG file; it appears whole or not at all.

    Args:
        file: Where to write.
        images: The test images that were encoded.
        results: The figures and attacks, as in `results.json`; examples are shown for the first attack.
        before: The images' features by the undefended encoder, and class text features (n, D) of its prompts, given
            the text trigger before them.
        after: Likewise of what was purified.
    """
    labels = ["clean\naccuracy"]
    scores = [[results[moment]["clean_accuracy"]] for moment in ("before", "after")]
    for name in results["attacks"]:
        labels += [f"{name}\nattack success", f"{name}\naccuracy under trigger"]
        for values, moment in zip(scores, ("before", "after"), strict=True):
            attack = results[moment]["attacks"][name]
            values += [attack["attack_success_rate"], attack["robust_accuracy"]]

    figure = new_figure(max(10.0, 2.2 * len(labels) + 4), 4.9)
    figure.set_dpi(150)
    if not results["attacks"]:
        _bars(figure.subplots(), labels, *scores)
    else:
        bars, examples = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.3 * len(labels), 5])[0]
        _bars(bars.subplots(), labels, *scores)
        name, attack = next(iter(results["attacks"].items()))
        trigger, names = trigger_from_config(attack["trigger"]), results["class_names"]
        rows = _example_rows(before[0].labels, names.index(attack["target_class"]))
        grid = examples.subplots(2, len(rows), squeeze=False)
        for column, row in enumerate(rows):
            sample = images[row]
            marked = apply_trigger(trigger, sample["pixel_values"][None], [sample["sample_id"]])[0]
            for line, pixels in enumerate((sample["pixel_values"], marked)):
                named = []
                for encoded, head in (before, after):
                    seen = encoded.triggered[name] if line else encoded.clean
                    text = head(trigger.apply_text("") if line else "")
                    named.append(names[int((seen[row] @ text.T).argmax())])
                _example(grid[line, column], pixels, name if line else "clean", *named)
        examples.supxlabel("below each image: its class before (red) and after (blue)", fontsize=9)
    write_bytes(file, png_bytes(figure))
