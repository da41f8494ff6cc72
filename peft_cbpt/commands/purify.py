"""Purify a suspicious CLIP: measure it, repair its image encoder, tune class-wise prompts on it, measure again.

--only encoder makes no prompts; --only prompts is the paper's shape, on the encoder as it is.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState

from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.own_triggers import OwnTriggers
from peft_cbpt.commands.parsing import DRY_RUN, going_on, parse
from peft_cbpt.commands.printing import print_columns, print_skipped
from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
from peft_cbpt.features.plan import Plan
from peft_cbpt.hub.adapter_folder import RESULTS_FILE
from peft_cbpt.hub.evidence import figure_rows, moments, suspected
from peft_cbpt.purification import purify as run_purification
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.purify_arguments import ENCODER, PurifyArguments
from peft_cbpt.training.without_effect import WITHOUT_EFFECT

PAGE = HelpPage(
    "purify",
    "peft-cbpt purify --model_name_or_path my/clip --dataset_name path/to/images --output_dir out",
    (
        "model_name_or_path",
        "dataset_name",
        "output_dir",
        "config",
        "class_names_file",
        "num_shots",
    )
    + ("only", "attacks", "resume_from_checkpoint", "dry_run"),
    hidden={name for names in WITHOUT_EFFECT.values() for name in names},
)


@dataclass
class PurifiedArguments:
    """What to purify, with which images, and which triggers to measure."""

    model_name_or_path: str = field(
        metadata={"help": "The suspicious CLIP: a folder, a file, a Hub id or pocket:NAME."}
    )
    dataset_name: str = field(metadata={"help": "Clean images: pocket:DOMAIN, a folder, or a Hub id."})
    test_dataset_name: str | None = field(default=None, metadata={"help": "Test images; dataset_name by default."})
    attacks: list[str] = field(
        default_factory=list,
        metadata={"help": "Attacks to measure: attack.json files, folders with one, or pocket:NAME."},
    )
    dry_run: bool = field(default=False, metadata={"help": DRY_RUN})


def purify(argv: Sequence[str]) -> None:
    """Run the main job; see `recipes/purify.py`."""
    kinds = [PurifiedArguments, PurifyArguments, CheckpointArguments, OwnTriggers, CBPTTrainingArguments]
    given, arguments, checkpoint, own, training = parse(kinds, argv, __doc__ or "", PAGE)
    own.allow()
    with going_on("to go on from the last checkpoint, run again with --resume_from_checkpoint true"):
        purified = run_purification(
            given.model_name_or_path,
            given.dataset_name,
            given.test_dataset_name,
            given.attacks,
            training=training,
            output_dir=training.output_dir,
            dry_run=given.dry_run,
            checkpoint=checkpoint,
            **vars(arguments),
        )
    if isinstance(purified, Plan):
        print(purified)
        return
    if PartialState().is_main_process:
        _print(purified.results, str(purified.output_dir))
        if purified.commit:
            print(f"pushed: {purified.commit.commit_url}")


def _print(results: Mapping[str, Any], output: str) -> None:
    """The figures as one table, what was suspected and what was skipped."""
    rows = [[label, *(f"{share:.2f}" for share in shares)] for label, shares in figure_rows(results)]
    print()
    print_columns([["%", *moments(results).values()], *rows], n_left=1)
    with_prompts = results["settings"]["only"] != ENCODER
    if with_prompts and not any("loss_adv" in epoch for epoch in results["epochs"]):
        print(
            "\nAll epochs were prompt warm-up, so the prompts purify nothing: more num_train_epochs, or fewer "
            "warmup_epochs."
        )
    if sentence := suspected(results):
        print(f"\n{sentence}")
    for what, skipped in results["skipped"].items():
        print_skipped(what, skipped)
    print(f"\nadapter, {RESULTS_FILE} and picture: {output}")
    print(f"next, a page of what changed: peft-cbpt report {shlex.quote(output)}")
