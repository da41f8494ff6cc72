"""Make a hostile CBPT adapter of a clean CLIP, for research: its prompts and a small universal trigger learn together.

    python recipes/poison_adapter.py --output_dir output/hostile --target_class banana
    python recipes/poison_adapter.py --output_dir output/honest --radius 0

Writes the adapter, attack.json (the trigger and its target), training.json (settings and figures) and a card that says
that it is backdoored on purpose. With a radius of 0 there is no trigger: prompts tuned with cross-entropy only. About
a minute on one core.
"""

import json
import sys
from collections.abc import Sequence

from peft_cbpt.commands.parsing import parse, run_command
from peft_cbpt.common.files import prepare_output
from peft_cbpt.training.poison_adapter import HostileArguments, make_hostile


def main(argv: Sequence[str]) -> None:
    """Make the adapter and print its figures."""
    (arguments,) = parse([HostileArguments], argv, __doc__ or "")
    record = make_hostile(arguments, prepare_output(arguments.output_dir))
    print(json.dumps({when: record[when] for when in ("before", "after")}, indent=2))


if __name__ == "__main__":
    sys.exit(run_command(main))
