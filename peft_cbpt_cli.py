"""`peft-cbpt COMMAND ...`: help, version and the choice of a command, before anything slow is imported.

It stands beside the package and not in it, because `import peft_cbpt` registers with PEFT and so loads torch.
"""

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "scan": "is this CLIP backdoored? a verdict, and the triggers that were found",
    "purify": "take a backdoor's power away from a CLIP; writes an adapter and what it did",
    "evaluate": "measure classifiers on datasets, with and without triggers, in one table",
    "report": "draw a run of purify as one HTML page",
    "push": "share an adapter on the Hub",
    "export": "write the purified classifier for places without PEFT",
    "convert": "turn an OpenAI, OpenCLIP, CleanCLIP or BadCLIP checkpoint into a folder, or back",
    "poison": "make a backdoored CLIP, for research",
    "finetune": "the baseline defences FT and CleanCLIP, for comparison",
    "env": "print versions and devices, for bug reports",
}
HELP = "\n".join(
    (
        "usage: peft-cbpt COMMAND [--option value ...]",
        "",
        "Takes backdoors out of CLIP checkpoints.",
        "",
        "commands:",
        *(f"  {name:<10}{text}" for name, text in COMMANDS.items()),
        "",
        "options:",
        "  --help    this text; `peft-cbpt COMMAND --help` lists a command's options",
        "  --version",
        "",
        "a first look, without a download:",
        "  peft-cbpt purify --model_name_or_path pocket:badnet --dataset_name pocket:base --attacks pocket:badnet \\",
        "      --num_classes 60 --output_dir out",
        "",
        "exit codes: 0 done, 1 the Hub failed or a bug, 2 bad input, 4 the machine failed, 130 interrupted",
        "            scan: 0 clean, 1 backdoored, 3 unsure",
    )
)


def version() -> str:
    """The version of the package beside this file."""
    text = Path(__file__).with_name("peft_cbpt").joinpath("__init__.py").read_text(encoding="utf-8")
    (number,) = re.findall(r'^__version__ = "(.+)"', text, flags=re.M)
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 when the Hub fails, 2 for bad input, 4 for a full disk.

    An interrupted one returns 130; `scan` returns 1 for a backdoor and 3 where it is unsure.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name in ("--help", "-h", "help"):
        print(HELP)
        return 0
    if name == "--version":
        print(f"peft-cbpt {version()}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else "`peft-cbpt --help` lists the commands"
        said = f"there is no command {name!r}" if name else "no command was given"
        print(f"error: {said}; {hint}", file=sys.stderr)
        return 2

    from peft_cbpt.commands.parsing import run_command
    from peft_cbpt.common.extras import named_extras

    def command(options: Sequence[str]) -> int | None:
        with named_extras():
            code: int | None = getattr(import_module(f"peft_cbpt.commands.{name}"), name)(options)
        return code

    return run_command(command, words[1:])


if __name__ == "__main__":
    sys.exit(main())
