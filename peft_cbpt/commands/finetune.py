"""The baseline defences, FT and CleanCLIP: fine-tune a suspicious CLIP on clean image-caption pairs."""

from collections.abc import Sequence

from accelerate import PartialState

from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.parsing import parse
from peft_cbpt.commands.printing import print_skipped
from peft_cbpt.training.finetune import FinetuneArguments
from peft_cbpt.training.finetune import finetune as run_finetune

PAGE = HelpPage(
    "finetune",
    "peft-cbpt finetune --model_name_or_path pocket:badnet --method cleanclip --output_dir out",
    ("model_name_or_path", "method", "output_dir", "config", "pairs_name", "num_pairs", "num_epochs", "batch_size")
    + ("learning_rate", "seed"),
)


def finetune(argv: Sequence[str]) -> None:
    """Run a baseline defence; see `recipes/finetune.py`."""
    (arguments,) = parse([FinetuneArguments], argv, __doc__ or "", PAGE)
    record = run_finetune(arguments)
    if PartialState().is_main_process:
        print_skipped("pairs", record["skipped"]["pairs"])
        print(arguments.output_dir)
