"""Is this CLIP backdoored? Look for universal triggers, weigh them against the model's own null, print a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.parsing import DRY_RUN, parse
from peft_cbpt.commands.printing import print_columns
from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
from peft_cbpt.detection.rounds import NUM_IMAGES
from peft_cbpt.features.plan import Plan
from peft_cbpt.scanning import SCAN_FILE
from peft_cbpt.scanning import scan as run_scan

PAGE = HelpPage(
    "scan",
    "peft-cbpt scan --model_name_or_path pocket:badnet --dataset_name pocket:base --output_dir verdict",
)
EXIT_CODES = {"clean": 0, "backdoored": 1, "unsure": 3}


@dataclass
class ScanArguments:
    """What to scan, with which images."""

    model_name_or_path: str = field(
        metadata={"help": "The suspicious CLIP: a folder, a file, a Hub id or pocket:NAME."}
    )
    dataset_name: str = field(metadata={"help": "Clean images: pocket:DOMAIN, a folder of files, or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for scan.json, pictures of triggers and scan.html."})
    adapter: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a PEFT adapter to scan on it: CBPT prompts, or a LoRA."}
    )
    class_names: list[str] | None = field(default=None, metadata={"help": "What a finding may be called."})
    num_images: int = field(default=NUM_IMAGES, metadata={"help": "Images to use, at most."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the images."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    template: str = field(default=PLAIN_TEMPLATE, metadata={"help": "Prompt of names and words."})
    seed: int = field(default=0, metadata={"help": "Seed of the choice of images and of all searches."})
    dry_run: bool = field(default=False, metadata={"help": DRY_RUN})


def scan(argv: Sequence[str]) -> int:
    """Run the scan; see `recipes/scan.py`. Returns the exit code: 0 clean, 1 backdoored, 3 unsure."""
    arguments, checkpoint = parse([ScanArguments, CheckpointArguments], argv, __doc__ or "", PAGE)
    verdict = run_scan(
        arguments.model_name_or_path,
        arguments.dataset_name,
        arguments.class_names,
        adapter=arguments.adapter,
        checkpoint=checkpoint,
        num_images=arguments.num_images,
        split=arguments.dataset_split,
        image_column=arguments.image_column,
        template=arguments.template,
        seed=arguments.seed,
        output_dir=arguments.output_dir,
        dry_run=arguments.dry_run,
    )
    if isinstance(verdict, Plan):
        print(verdict)
        return 0
    _print(verdict.results, Path(arguments.output_dir).expanduser())
    return EXIT_CODES[verdict.verdict]


def _print(results: Mapping[str, Any], output: Path) -> None:
    print(f"verdict: {results['verdict']}")
    rows = [("finding", one) for one in results["findings"]] + [("doubt", one) for one in results["doubts"]]
    if rows:
        unnamed = "(none of the names)" if results["class_names"] else "(no names given)"
        lines = [["", "class", "nearest words", "kind", "score", "false alarms", "rms", "success"]]
        for what, one in rows:
            words = ", ".join(one["words"][:3])
            figures = [f"{one['score']:.2f}", f"{one['false_alarm_rate']:.1g}", f"{one['rms']:g}"]
            success = f"{100 * one['success_rate']:.0f}%"
            lines.append([what, one["class"] or unnamed, words, one["kind"], *figures, success])
        print_columns(lines, n_left=4)
    print(f"figures and pictures: {output / SCAN_FILE}")
