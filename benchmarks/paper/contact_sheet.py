"""Draw what the zoo's attacks do to pictures of the pocket world: original, triggered, ten times the difference.

    python -m benchmarks.paper.contact_sheet --output docs/images/attacks.png

The triggers are those of the zoo (recipes/configs/pocket/poison_ATTACK.yaml); patches are optimised for it, which
takes some minutes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.paper.contact_sheet_picture import draw_contact_sheet
from benchmarks.paper.zoo import PAPER_ATTACKS, zoo_job
from peft_cbpt.commands.parsing import parse, run_command
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import render_samples, sample_ids
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.training.prepare_attack import prepare_attack


@dataclass
class ContactSheetArguments:
    """Which attacks, on which pictures."""

    attacks: list[str] = field(
        default_factory=lambda: list(PAPER_ATTACKS),
        metadata={"help": "Attacks to draw; the paper's seven by default."},
    )
    configs: str = field(default="recipes/configs/pocket", metadata={"help": "Folder of poison_ATTACK.yaml files."})
    target_class: str = field(default="banana", metadata={"help": "What optimised patches aim at."})
    seed: int = field(default=0, metadata={"help": "Seed of the triggers."})
    output: str = field(default="output/attacks.png", metadata={"help": "PNG file to write."})
    classes: list[str] = field(
        default_factory=lambda: ["dog", "castle"], metadata={"help": "Classes of the pictures shown."}
    )


def contact_sheet(argv: Sequence[str]) -> None:
    """Run the recipe; see `benchmarks/paper/contact_sheet.py`."""
    (arguments,) = parse([ContactSheetArguments], argv, __doc__ or "")
    for name in (*arguments.classes, arguments.target_class):
        if name not in class_names():
            raise InputError(f"the pocket world has no class {name!r}")
    configs, target, seed = Path(arguments.configs), arguments.target_class, arguments.seed
    jobs = {name: zoo_job(configs, Path("unused"), name, target, seed) for name in arguments.attacks}
    output = Path(arguments.output)
    prepare_output(str(output.parent))
    attacks = {}
    for name, job in jobs.items():
        clip = open_clip(job.model_name_or_path)
        attacks[name], _ = prepare_attack(job, clip, class_names())
    ids = [sample_ids("base", "test", name, [0])[0] for name in arguments.classes]
    draw_contact_sheet(output, attacks, render_samples(ids)[0], ids)
    print(output)


if __name__ == "__main__":
    sys.exit(run_command(contact_sheet))
