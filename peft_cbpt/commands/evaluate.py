"""Measure any classifiers on any datasets under any triggers, and print one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.own_triggers import OwnTriggers
from peft_cbpt.commands.parsing import going_on, parse
from peft_cbpt.commands.printing import print_columns, print_skipped
from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
from peft_cbpt.evaluation.classifiers import TEMPLATE
from peft_cbpt.evaluation.evaluate import CLEAN, EVALUATION_FILE, EvaluationArguments
from peft_cbpt.evaluation.evaluate import evaluate as run_evaluation

PAGE = HelpPage(
    "evaluate",
    "peft-cbpt evaluate --model_name_or_path pocket:badnet --classifiers template out --datasets pocket:v2 \\\n"
    "      --attacks pocket:badnet --output_dir table",
    ("model_name_or_path", "datasets", "classifiers", "attacks", "output_dir", "config", "class_names_file"),
)


@dataclass
class EvaluateArguments:
    """What to measure, on what."""

    model_name_or_path: str = field(metadata={"help": "The CLIP: a folder, a file, a Hub id or pocket:NAME."})
    datasets: list[str] = field(
        metadata={"help": "Test sets, NAME or NAME@SPLIT: pocket:DOMAIN, imagenet-v2, a folder, a Hub id ..."}
    )
    output_dir: str = field(metadata={"help": "Folder for evaluation.json and the cells it is made of."})
    classifiers: list[str] = field(
        default_factory=lambda: [TEMPLATE],
        metadata={"help": "template, and folders or Hub ids of CBPT adapters, other PEFT adapters and whole CLIPs."},
    )
    attacks: list[str] = field(
        default_factory=list,
        metadata={"help": "Attacks to measure: attack.json files, folders with one, or pocket:NAME."},
    )


def evaluate(argv: Sequence[str]) -> None:
    """Run the evaluation; see `recipes/evaluate_classifiers.py`."""
    kinds = [EvaluateArguments, EvaluationArguments, CheckpointArguments, OwnTriggers]
    given, arguments, checkpoint, own = parse(kinds, argv, __doc__ or "", PAGE)
    own.allow()
    with going_on("the cells that are finished are kept: run the same again to go on"):
        results = run_evaluation(
            given.model_name_or_path,
            given.datasets,
            given.attacks,
            classifiers=given.classifiers,
            output_dir=given.output_dir,
            checkpoint=checkpoint,
            **vars(arguments),
        )
    if PartialState().is_main_process:
        _print(results, Path(given.output_dir).expanduser())


def _print(results: Mapping[str, Any], output: Path) -> None:
    """One table: a line for every classifier on every dataset, and one for each attack below it."""
    shown = {
        "top-1": "accuracy",
        "top-5": "top5_accuracy",
        "ASR": "attack_success_rate",
        "ASR (published)": "attack_success_rate_published",
        "top-1, trigger": "robust_accuracy",
    }
    lines = [["dataset", "classifier", "images", *shown]]
    for cell in results["cells"]:
        name = cell["classifier"] if cell["attack"] == CLEAN else f"{cell['classifier']} / {cell['attack']}"
        shares = [f"{100 * cell[key]:.2f}" if cell.get(key) is not None else "" for key in shown.values()]
        lines.append([cell["dataset"], name, str(cell["n_images"]), *shares])
    print_columns(lines, n_left=2)
    if results["detection"]:
        _print_detection(results["detection"])
    for name, skipped in {cell["dataset"]: cell["skipped"] for cell in results["cells"]}.items():
        print_skipped(name, skipped)
    print(f"\n{results['n_computed']} of {len(results['cells'])} cells computed; figures: {output / EVALUATION_FILE}")


def _print_detection(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for the clean images of every test set, and one for each attack below it."""
    lines = [["dataset", "told apart by", "images", "flagged", "AUROC", "F1"]]
    for row in rows:
        name = row["classifier"] if row["attack"] == CLEAN else f"{row['classifier']} / {row['attack']}"
        shares = [f"{row[key]:.4f}" if key in row else "" for key in ("auroc", "f1")]
        lines.append([row["dataset"], name, str(row["n_images"]), f"{100 * row['flagged']:.2f}", *shares])
    print()
    print_columns(lines, n_left=2)
    print(
        f"the threshold is set on {rows[0]['n_clean']} clean images, to flag at most {rows[0]['level']:.2%} of others"
    )
