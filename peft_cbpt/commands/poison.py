"""Make a backdoored CLIP, for research: fine-tune a clean one on captioned images of which a few are poisoned."""

import json
from collections.abc import Sequence

from accelerate import PartialState

from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.own_triggers import OwnTriggers
from peft_cbpt.commands.parsing import parse
from peft_cbpt.commands.printing import print_skipped
from peft_cbpt.training.poison import poison as run_poison
from peft_cbpt.training.poison_arguments import PoisonArguments

PAGE = HelpPage(
    "poison",
    "peft-cbpt poison --trigger badnet --target_class banana --poison_rate 0.01 --output_dir poisoned",
    ("model_name_or_path", "trigger", "trigger_settings", "target_class", "poison_rate", "output_dir", "config")
    + ("pairs_name", "num_pairs", "seed"),
)


def poison(argv: Sequence[str]) -> None:
    """Run the attack; see `recipes/poison.py`."""
    arguments, own = parse([PoisonArguments, OwnTriggers], argv, __doc__ or "", PAGE)
    own.allow()
    record = run_poison(arguments)
    if PartialState().is_main_process:
        for what, skipped in record["skipped"].items():
            print_skipped(what, skipped)
        print(json.dumps({name: record[name] for name in ("before", "after", "seconds")}, indent=2))
