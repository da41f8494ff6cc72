"""Make a backdoored CLIP, for research: fine-tune a clean one on captioned images of which a few are poisoned."""

import json
from collections.abc import Sequence

from accelerate import PartialState

from peft_cbpt.commands.parsing import parse
from peft_cbpt.commands.printing import print_skipped
from peft_cbpt.training.poison import PoisonArguments
from peft_cbpt.training.poison import poison as run_poison


def poison(argv: Sequence[str]) -> None:
    """Run the attack; see `recipes/poison.py`."""
    (arguments,) = parse([PoisonArguments], argv, __doc__ or "")
    record = run_poison(arguments)
    if PartialState().is_main_process:
        for what, skipped in record["skipped"].items():
            print_skipped(what, skipped)
        print(json.dumps({name: record[name] for name in ("before", "after", "seconds")}, indent=2))
