"""`peft-cbpt COMMAND ...`: the recipes as one program."""

import argparse
import sys
from collections.abc import Callable, Sequence

from peft_cbpt.commands.convert import convert
from peft_cbpt.commands.evaluate import evaluate
from peft_cbpt.commands.export import export
from peft_cbpt.commands.parsing import run_command
from peft_cbpt.commands.poison import poison
from peft_cbpt.commands.purify import purify
from peft_cbpt.commands.push import push
from peft_cbpt.commands.report import report
from peft_cbpt.commands.scan import scan

COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "scan": scan,
    "purify": purify,
    "poison": poison,
    "evaluate": evaluate,
    "convert": convert,
    "report": report,
    "export": export,
    "push": push,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 when the Hub fails, 2 for bad input, 130 when interrupted.

    `scan` returns 1 for a backdoor and 3 where it is unsure.
    """
    parser = argparse.ArgumentParser(prog="peft-cbpt", description=__doc__)
    parser.add_argument("command", choices=COMMANDS, help="What to do; `peft-cbpt COMMAND --help` says more.")
    words = list(sys.argv[1:] if argv is None else argv)
    parsed = parser.parse_args(words[:1])
    return run_command(COMMANDS[parsed.command], words[1:])
