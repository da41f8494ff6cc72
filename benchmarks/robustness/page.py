"""docs/robustness.md from stored cells: one table a test, defences as columns, a dash where nothing was run."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.robustness.reactivation import BUDGETS, REGIONS, WORKS
from benchmarks.robustness.rebound import EPOCHS, SETTINGS, WAYS

TEXT = Path(__file__).with_name("page.md")
MISSING = "–"
Cell = dict[str, Any]
Model = tuple[str, str]
LABELS = {
    "none": "no defence",
    "prompts": "prompts",
    "encoder": "encoder",
    "both": "prompts on the encoder",
    "ft": "FT",
    "cleanclip": "CleanCLIP",
    "clean": "clean CLIP",
}
PAIR = ("clean_accuracy", "attack_success_rate")
TRIPLE = (*PAIR, "robust_accuracy")


class Cells:
    """Stored cells by model, defence and test."""

    def __init__(self, cells: Iterable[Cell]):
        self.by_key = {(one["world"], one["model"], one["defence"], one["test"]): one for one in cells}

    def models(self, test: str) -> list[Model]:
        """World and name of the models that a test was run on, those that ship first."""
        found = {key[:2] for key in self.by_key if key[3] == test}
        return sorted(found, key=lambda one: (one[0] != "pocket", not one[1].startswith("clip-"), one[1]))

    def figures(self, model: Model, test: str) -> list[Any]:
        """By defence the figures of a cell; None if it was not run."""
        found = [self.by_key.get((*model, defence, test)) for defence in LABELS]
        return [one and one["figures"] for one in found]


def render(cells: Iterable[Cell]) -> str:
    """The page."""
    stored = Cells(cells)
    return TEXT.read_text(encoding="utf-8").format(
        planted=table(["model", "scan", *LABELS.values()], planted_rows(stored)),
        rebound=table(["model", "what is trained", "epoch", *LABELS.values()], rebound_rows(stored)),
        reactivation=table(["model", "what may change", *LABELS.values()], reactivation_rows(stored)),
        interfaces=table(["model", "used as", *LABELS.values()], interface_rows(stored)),
        pairs=f"{SETTINGS['num_pairs']:,}",
        rate=SETTINGS["learning_rate"],
        budgets=", ".join(map(str, BUDGETS)),
        works=f"{100 * WORKS:.0f}%",
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(figures: dict[str, float] | None, *names: str) -> str:
    """Shares as per cent, `98.1 / 0.0`; a dash for what is missing."""
    if figures is None:
        return MISSING
    return " / ".join(f"{100 * figures[name]:.1f}" if name in figures else MISSING for name in names)


def label_of(model: Model) -> str:
    """What the page calls a model."""
    world, name = model
    name = name.removesuffix("-seed0").removesuffix("-banana").replace("clip-", "pocket:").replace("_", " ")
    return name if world == "pocket" else f"photographs, {name}"


def planted_rows(stored: Cells) -> Iterable[list[str]]:
    """A row a model and trigger."""
    for model in stored.models("planted"):
        every = stored.figures(model, "planted")
        verdict = _verdict(stored.figures(model, "scan")[0])
        attacks = next(one["attacks"] for one in every if one)
        for attack in attacks:
            label = label_of(model) + (f": {attack}" if len(attacks) > 1 else "")
            yield [label, verdict, *(_under(one, attack, *TRIPLE) for one in every)]


def rebound_rows(stored: Cells) -> Iterable[list[str]]:
    """A row a model, way and epoch; the figures are those of the model's first trigger."""
    for model in stored.models("rebound"):
        every, attack = stored.figures(model, "rebound"), None
        for way in WAYS:
            for epoch in map(str, EPOCHS):
                moments = [one and one[way][epoch] for one in every]
                attack = next(iter(next(one for one in moments if one)["attacks"]))
                if way == WAYS[0] and epoch == str(EPOCHS[0]):
                    before = stored.figures(model, "planted")
                    yield [label_of(model), "", "0", *(_under(one, attack, *PAIR) for one in before)]
                yield [label_of(model), way, epoch, *(_under(one, attack, *PAIR) for one in moments)]


def reactivation_rows(stored: Cells) -> Iterable[list[str]]:
    """A row a model and region."""
    for model in stored.models("reactivation"):
        every = stored.figures(model, "reactivation")
        for region, where in zip(REGIONS, ("the trigger's pixels", "the whole image"), strict=True):
            if any(one and region in one for one in every):
                yield [label_of(model), where, *(_budget(one and one[region]) for one in every)]


def interface_rows(stored: Cells) -> Iterable[list[str]]:
    """A row a model and interface."""
    for model in stored.models("interfaces"):
        every = stored.figures(model, "interfaces")
        for name in max((one for one in every if one), key=len):
            yield [label_of(model), name, *(shown(one and one.get(name), *TRIPLE) for one in every)]


def _under(figures: dict[str, Any] | None, attack: str, *names: str) -> str:
    return MISSING if figures is None else shown(figures | figures["attacks"][attack], *names)


def _verdict(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return MISSING
    named = [str(name) for name, _ in [*figures["findings"], *figures["doubts"]]][:2]
    return figures["verdict"] + (f" ({', '.join(named)})" if named else "")


def _budget(tried: dict[str, float] | None) -> str:
    if tried is None:
        return MISSING
    budget, success = next(((one, share) for one, share in tried.items() if share >= WORKS), list(tried.items())[-1])
    return f"{'' if success >= WORKS else 'more than '}{budget} ({100 * success:.0f}%)"
