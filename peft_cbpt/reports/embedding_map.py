"""t-SNE map of image embeddings and class prompts (Fig. 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from peft_cbpt.reports.style import AFTER, BEFORE, CLEAN, TARGET, TRIGGERED, new_figure, plain_spines, short


@dataclass(frozen=True)
class Embeddings:
    """What is drawn; unit-norm features (N, D).

    Args:
        clean: Clean images of the other classes.
        target: Clean images of the target class.
        triggered: Triggered images of the other classes.
        prompts_before: Template prompts of the classes shown.
        prompts_after: Learned prompts of the classes shown, in the same order.
        target_row: Which of the prompts is the target's.
        called_before: Whether each triggered image was called the target, bool (N,).
        called_after: Whether it still is.
    """

    clean: Tensor
    target: Tensor
    triggered: Tensor
    prompts_before: Tensor
    prompts_after: Tensor
    target_row: int
    called_before: Tensor
    called_after: Tensor


def embedding_map(embeddings: Embeddings, seed: int) -> dict[str, Tensor]:
    """Places (N, 2) of every group of `embeddings` on one seeded t-SNE map by cosine distance.

    Images and prompts live in different cones of CLIP's space, so the mean of either kind is taken off first;
    otherwise the map shows little but that gap.
    """
    from sklearn.manifold import TSNE

    images = {name: getattr(embeddings, name) for name in ("clean", "target", "triggered")}
    prompts = {name: getattr(embeddings, name) for name in ("prompts_before", "prompts_after")}
    centred = _centred(images) | _centred(prompts)
    features = torch.cat(list(centred.values()))
    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
    places = torch.from_numpy(tsne.fit_transform(features.numpy()))
    return dict(zip(centred, places.split([len(group) for group in centred.values()]), strict=True))


def _centred(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean = torch.cat(list(groups.values())).mean(0)
    return {name: torch.nn.functional.normalize(group - mean, dim=-1) for name, group in groups.items()}


def embedding_map_figure(
    embeddings: Embeddings, places: Mapping[str, Tensor], trigger: str, target_class: str
) -> Figure:
    """The map twice: with the prompts before and after. Triggered images that are called the target are filled.

    Args:
        embeddings: What is drawn.
        places: The result of `embedding_map`.
        trigger: Name of the trigger.
        target_class: Name of its target.
    """
    figure = new_figure(11, 5.6)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, moment, colour in zip(panels, ("before", "after"), (BEFORE, AFTER), strict=True):
        called = getattr(embeddings, f"called_{moment}")
        _draw_images(axes, places, called, short(target_class))
        words = places[f"prompts_{moment}"]
        own = words[embeddings.target_row, None]
        cross = {"marker": "X", "s": 46, "color": colour, "edgecolor": "white", "linewidth": 0.7}
        _scatter(axes, words, "class prompts (red before, blue after)", **cross)
        _scatter(axes, own, "prompt of the target", marker="*", s=230, color=TARGET, edgecolor="black")
        share = 100 * called.float().mean().item()
        axes.set_title(
            f"{moment}: {share:.0f}% of the triggered images are called the target", color=colour, fontsize=10
        )
        axes.set_xticks([])
        axes.set_yticks([])
        plain_spines(axes)
    figure.legend(
        *panels[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside lower center", fontsize=9
    )
    figure.suptitle(f"trigger {short(trigger)}, target {short(target_class, 30)}", fontsize=11)
    return figure


def _draw_images(axes: Axes, places: Mapping[str, Tensor], called_target: Tensor, target: str) -> None:
    _scatter(axes, places["clean"], "clean images of other classes", s=10, color=CLEAN, alpha=0.6)
    _scatter(axes, places["target"], f"clean images of {target}", marker="^", s=26, color=TARGET)
    fooled, others = places["triggered"][called_target], places["triggered"][~called_target]
    _scatter(axes, fooled, "triggered, called the target", marker="s", s=15, color=TRIGGERED)
    hollow = {"facecolor": "none", "edgecolor": TRIGGERED}
    _scatter(axes, others, "triggered, called another class", marker="s", s=15, **hollow)


def _scatter(axes: Axes, places: Tensor, label: str, **style: Any) -> None:
    axes.scatter(places[:, 0].numpy(), places[:, 1].numpy(), label=label, **style)
