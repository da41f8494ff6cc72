"""Draw what purification did: one HTML page that can be mailed, and its pictures as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.own_triggers import OwnTriggers
from peft_cbpt.commands.parsing import folder_first, parse
from peft_cbpt.reports.report import PAGE_FILE, draw_report

PAGE = HelpPage("report", "peft-cbpt report out")


@dataclass
class ReportArguments:
    """Which run to draw, and where its inputs are now."""

    folder: str = field(metadata={"help": "Output folder of purify; may be given as the first word."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder to write to; FOLDER/report by default."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "The base model, if it has moved."})
    dataset_name: str | None = field(default=None, metadata={"help": "The dataset of the shots, if it has moved."})
    test_dataset_name: str | None = field(default=None, metadata={"help": "The test images, if they have moved."})
    class_names_file: str | None = field(default=None, metadata={"help": "Names of the classes, if they have moved."})


def report(argv: Sequence[str]) -> None:
    """Run the command; see docs/reports.md."""
    arguments, own = parse([ReportArguments, OwnTriggers], folder_first(argv), __doc__ or "", PAGE)
    own.allow()
    output, pictures = draw_report(**vars(arguments))
    print(f"{PAGE_FILE} and {len(pictures)} pictures: {output}")
