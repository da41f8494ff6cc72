"""What `--help` prints: the options most people need, then the others in groups, each with its one name."""

import argparse
from collections.abc import Collection
from dataclasses import dataclass, fields

from transformers import TrainingArguments

TRAINER_FIELDS = frozenset(one.name for one in fields(TrainingArguments))


@dataclass(frozen=True)
class HelpPage:
    """A command's page.

    Args:
        command: Its name.
        example: A command line that works.
        first: The options most people need, in this order; all if empty.
        hidden: Options that need not be listed, since they are refused.
    """

    command: str
    example: str
    first: tuple[str, ...] = ()
    hidden: Collection[str] = ()

    def arrange(self, parser: argparse.ArgumentParser) -> None:
        """Put the options of `parser` into groups."""
        parser.prog = f"peft-cbpt {self.command}"
        parser.usage = f"{parser.prog} [--option value ...]"
        parser.epilog = f"example:\n  {self.example}"
        actions = {
            action.dest: action
            for action in reversed(parser._actions)
            if action.dest not in ("help", *self.hidden) and not action.option_strings[0].startswith("--no_")
        }
        first = [actions.pop(name) for name in self.first or tuple(reversed(actions)) if name in actions]
        rest = list(reversed(actions.values()))
        ours = [action for action in rest if action.dest not in TRAINER_FIELDS]
        groups = {
            "options" if not rest else "what most people need": first,
            "more": ours,
            "of transformers.TrainingArguments": [action for action in rest if action not in ours],
        }
        parser._action_groups.clear()
        for title, members in groups.items():
            parser.add_argument_group(title)._group_actions.extend(members)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One name an option, and its default where that says something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = action.option_strings[0]
        if action.choices:
            return f"{name} {{{','.join(map(str, action.choices))}}}" + (" ..." if action.nargs == "+" else "")
        kind = getattr(action.type, "__name__", "text")
        kind = {"text": "TEXT", "str": "TEXT", "int": "N", "float": "X", "string_to_bool": "BOOL"}.get(kind, "VALUE")
        return f"{name} {kind}" + (" ..." if action.nargs in ("+", "*") else "")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        silent = action.default is None or action.default in ("", [], argparse.SUPPRESS)
        return text if silent else f"{text} (default: %(default)s)"
