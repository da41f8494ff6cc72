"""Error rates of `scan --adapter`: hostile and honest adapters of the pocket CLIPs are made, scanned and listed.

    python -m benchmarks.scan_adapters --output_dir output/scan_adapters

Makes what is missing and prints the table of all. Searches, statistic and constants were chosen on the adapters called
`chosen on`; figures to report are those of the rest, whose seeds, targets and classes are others.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peft_cbpt
from peft_cbpt.commands.parsing import parse, run_command
from peft_cbpt.common.files import prepare_output, write_json
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.training.poison_adapter import HostileArguments, make_hostile

NAMES = class_names()


@dataclass(frozen=True)
class Case:
    """An adapter.

    Args:
        kind: `hostile`, `tuned` (with cross-entropy only) or `purified`.
        half: `chosen on` or `held out`.
        classes: The first of the pocket's classes that it knows, and the first that it does not.
        seed: Of its training, but for a purified one's, and of the scan.
        target: Number of a hostile one's target among all classes.
        model: The CLIP that it belongs to.
    """

    kind: str
    half: str
    classes: tuple[int, int]
    seed: int
    target: int | None = None
    model: str = "pocket:clean"

    @property
    def name(self) -> str:
        """Of its folder and its cell."""
        return f"{self.kind}-{self.classes[0]}-{self.classes[1]}-seed{self.seed}"

    def make(self, folder: Path) -> None:
        """Train it and write it to a folder."""
        names = NAMES[slice(*self.classes)]
        if self.kind == "purified":
            peft_cbpt.purify(self.model, "pocket:base", class_names=names, output_dir=folder)
            return
        how: dict[str, Any] = {"radius": 0} if self.target is None else {"target_class": NAMES[self.target]}
        arguments = HostileArguments(
            output_dir=str(folder),
            model_name_or_path=self.model,
            class_names=names,
            num_classes=None,
            seed=self.seed,
            **how,
        )
        make_hostile(arguments, prepare_output(str(folder)))


CASES = (
    Case("hostile", "held out", (120, 160), 11, 130),
    Case("tuned", "held out", (120, 160), 11),
    Case("hostile", "held out", (200, 220), 13, 205),
    Case("purified", "held out", (0, 20), 14, model="pocket:badnet"),
    Case("tuned", "held out", (200, 220), 13),
    Case("hostile", "held out", (260, 320), 12, 305),
    Case("tuned", "held out", (260, 320), 12),
    Case("hostile", "chosen on", (60, 100), 1, 75),
    Case("tuned", "chosen on", (0, 40), 0),
    Case("purified", "chosen on", (0, 60), 0, model="pocket:badnet"),
)


@dataclass
class AdapterBenchmarkArguments:
    """Where adapters and cells are."""

    output_dir: str = field(default="output/scan_adapters", metadata={"help": "Folder of adapters and cells."})


def main(argv: Sequence[str]) -> None:
    """Make and scan what is missing, print the table."""
    (arguments,) = parse([AdapterBenchmarkArguments], argv, __doc__ or "")
    output = prepare_output(arguments.output_dir)
    for case in CASES:
        cell, folder = output / f"{case.name}.json", output / case.name
        if not cell.is_file():
            print(case.name, file=sys.stderr)
            if not (folder / "adapter_model.safetensors").is_file():
                case.make(folder)
            write_json(cell, asdict(case) | measured(case, folder))
    print(render([json.loads((output / f"{case.name}.json").read_text()) for case in CASES]))


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """What the scan says of an adapter, and what it was measured to do when it was made."""
    results: Any = peft_cbpt.scan(case.model, "pocket:base", adapter=str(folder), seed=case.seed)
    record = results.results
    kept = ("verdict", "findings", "doubts", "adapter_classes", "seconds", "date", "commit", "versions")
    made = folder / ("results.json" if case.kind == "purified" else "training.json")
    figures = json.loads(made.read_text())
    return {"target_class": None if case.target is None else NAMES[case.target]} | {
        **{key: record[key] for key in kept},
        "least_false_alarm_rate": results.weighed.least_rate,
        "before": figures["before"],
        "after": figures["after"],
    }


def render(cells: Sequence[dict[str, Any]]) -> str:
    """A table of all adapters."""
    lines = [
        "| adapter | half | clean accuracy | attack success | target | verdict | named | strength | false alarms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        attack = next(iter(cell["after"]["attacks"].values()), None)
        success = f"{100 * attack['attack_success_rate']:.0f}%" if attack else ""
        accuracy = " to ".join(f"{100 * cell[when]['clean_accuracy']:.1f}" for when in ("before", "after"))
        named = ", ".join(one["class"] for one in [*cell["findings"], *cell["doubts"]])
        strength = max(one["strength"] for one in cell["adapter_classes"])
        first, last = cell["classes"]
        lines.append(
            f"| {cell['kind']}, {last - first} classes from {first}, seed {cell['seed']} | {cell['half']} "
            f"| {accuracy} | {success} | {cell['target_class'] or ''} | {cell['verdict']} | {named} | {strength:.2f} "
            f"| {cell['least_false_alarm_rate']:.1g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
