"""`peft-cbpt COMMAND ...`: the recipes as one program."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from peft_cbpt.commands.parsing import run_command
from peft_cbpt.common.extras import named_extras

COMMANDS = ("scan", "purify", "poison", "evaluate", "convert", "report", "export", "push")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 when the Hub fails, 2 for bad input, 130 when interrupted.

    `scan` returns 1 for a backdoor and 3 where it is unsure.
    """
    parser = argparse.ArgumentParser(prog="peft-cbpt", description=__doc__)
    parser.add_argument("command", choices=COMMANDS, help="What to do; `peft-cbpt COMMAND --help` says more.")
    words = list(sys.argv[1:] if argv is None else argv)
    name = parser.parse_args(words[:1]).command

    def command(options: Sequence[str]) -> int | None:
        with named_extras():
            run = getattr(import_module(f"peft_cbpt.commands.{name}"), name)
        code: int | None = run(options)
        return code

    return run_command(command, words[1:])
