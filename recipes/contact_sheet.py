"""Draw what attacks do to pictures of the pocket world: original, triggered, ten times the difference.

python recipes/contact_sheet.py --attacks output/zoo/*/attack.json --output docs/images/attacks.png
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft_cbpt.attacks.attack_file import read_attacks
from peft_cbpt.commands.parsing import parse, run_command
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import render_samples, sample_ids
from peft_cbpt.reports.contact_sheet import draw_contact_sheet


@dataclass
class ContactSheetArguments:
    attacks: list[str] = field(metadata={"help": "attack.json files, or folders with one."})
    output: str = field(default="output/attacks.png", metadata={"help": "PNG file to write."})
    classes: list[str] = field(
        default_factory=lambda: ["dog", "castle"], metadata={"help": "Classes of the pictures shown."}
    )


def main(argv: Sequence[str]) -> None:
    (arguments,) = parse([ContactSheetArguments], argv, __doc__ or "")
    attacks = read_attacks(arguments.attacks, class_names())
    ids = [sample_ids("base", "test", name, [0])[0] for name in arguments.classes]
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(output, attacks, render_samples(ids)[0], ids)
    print(output)


if __name__ == "__main__":
    sys.exit(run_command(main))
