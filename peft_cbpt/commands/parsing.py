"""Settings from a YAML file and the command line, and errors as one line with exit code 2."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from peft_cbpt.commands.help_page import HelpFormatter, HelpPage
from peft_cbpt.common.errors import HubError, InputError, did_you_mean, machine_fault
from peft_cbpt.common.files import read_text
from peft_cbpt.common.processes import leave_processes
from peft_cbpt.common.progress import stages_instead_of_bars

INTERRUPTED, MACHINE_FAILED = 130, 4
DRY_RUN = "Check everything, print what it will cost (images, passes, minutes, memory), and stop."
Settings = TypeVar("Settings")


def read_yaml(file: str) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        InputError: if the file cannot be read or is no mapping.
    """
    try:
        settings = yaml.safe_load(read_text(Path(file)))
    except OSError as error:
        raise InputError(f"cannot read the config file {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the config file {file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise InputError(f"the config file {file} must hold `name: value` lines")
    return settings


def parse(
    argument_types: Sequence[type], argv: Sequence[str], usage: str, page: HelpPage | None = None
) -> tuple[Any, ...]:
    """Fill dataclasses from `--config FILE.yaml` and from options, which win; `page` is what `--help` prints.

    Raises:
        InputError: for an unknown name, a missing file, or a value of the wrong type.
    """
    parser = _parser(argument_types, usage)
    if page is not None:
        page.arrange(parser)
    with _one_line_errors():
        _refuse_unknown(parser, argv)
        config, options = _config_parser().parse_known_args(argv)
        if config.config is not None:
            _set_defaults(parser, argument_types, read_yaml(config.config), config.config)
        parsed: Any = parser.parse_args_into_dataclasses(options, return_remaining_strings=True)
    if unknown_words := parsed[-1]:
        raise InputError(f"unknown option {unknown_words[0]!r}; see --help for the settings")
    return parsed[: len(argument_types)]


def fill(argument_type: type[Settings], settings: Mapping[str, Any], source: str) -> Settings:
    """A dataclass filled from settings, such as those of a YAML file, with the checks that options go through.

    Raises:
        InputError: for an unknown or a missing name, or a value of the wrong type; `source` says where it is.
    """
    parser = _parser([argument_type], "")
    with _one_line_errors():
        _set_defaults(parser, [argument_type], settings, source)
        filled, *_ = parser.parse_args_into_dataclasses([])
    return filled


def _parser(argument_types: Sequence[type], usage: str) -> HfArgumentParser:
    kinds: Any = list(argument_types)
    parser = HfArgumentParser(
        kinds, description=usage, allow_abbrev=False, exit_on_error=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--config", help="YAML file with any of the settings below; options override it.")
    parser.error = _raise_input_error  # type: ignore[method-assign, assignment]
    return parser


def _refuse_unknown(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Before argparse complains about what is missing because its name was mistyped."""
    known = parser._option_string_actions
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and name not in known:
            raise InputError(f"unknown option {name!r}{did_you_mean(name, known)}; see --help for the settings")


def _config_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    parser.error = _raise_input_error  # type: ignore[method-assign, assignment]
    return parser


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers raises many kinds where it does not like a setting
        raise InputError(" ".join((str(error) or repr(error)).split())) from error


def _set_defaults(
    parser: HfArgumentParser, argument_types: Sequence[type], settings: Mapping[str, Any], source: str
) -> None:
    """Make settings the defaults of options, each with the type that its field has."""
    options = {action.dest: action for action in reversed(parser._actions)}
    hints = {name: hint for kind in argument_types for name, hint in get_type_hints(kind).items()}
    for name, value in settings.items():
        if name not in options or name not in hints:
            near = did_you_mean(name, hints)
            raise InputError(f"unknown setting {name!r} in {source}{near}; see --help for the settings")
        try:
            parser.set_defaults(**{name: _typed(options[name], hints[name], value)})
        except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
            raise InputError(f"{name} in {source}: {error}") from error
        options[name].required = False


def _typed(option: argparse.Action, hint: Any, value: Any) -> Any:
    """A value of YAML as a field has it; text goes through the option's own type, since `1e-3` is text in YAML."""
    allowed = [get_origin(one) or one for one in (hint, *get_args(hint))]
    if value is None:
        if type(None) not in allowed:
            raise ValueError("it is empty, give it a value or leave it out")
        return None
    if list in allowed:
        return [_scalar(option, one) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, dict):
        return value if dict in allowed else json.dumps(value)
    return _scalar(option, value)


def _scalar(option: argparse.Action, value: Any) -> Any:
    kind: Any = option.type or str
    if isinstance(value, list | dict):
        raise ValueError(f"it takes one value, not {value}")
    try:
        typed = kind(str(value))
    except ValueError as error:
        raise ValueError(f"invalid {kind.__name__} value: {value!r}") from error
    if option.choices is not None and typed not in option.choices:
        raise ValueError(f"invalid choice: {value!r} (choose from {', '.join(map(str, option.choices))})")
    return typed


def folder_first(argv: Sequence[str]) -> list[str]:
    """Words of `peft-cbpt COMMAND DIR --option ...` with the leading DIR as the option `--folder`."""
    words = list(argv)
    return ["--folder", *words] if words and not words[0].startswith("-") else words


def _raise_input_error(message: str) -> None:
    raise InputError(" ".join(message.split()))


@contextmanager
def going_on(how: str) -> Iterator[None]:
    """Say how to go on where Ctrl-C or a full disk ends the block."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, KeyboardInterrupt) or machine_fault(error):
            print(how, file=sys.stderr)
        raise


def run_command(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command; the first process prints an error of input or Hub as one line. Returns the exit code.

    That is what the command returns, or 0 where it returns nothing.
    """
    # peft 0.21 asks transformers 5.23 for a name that was replaced; users can do nothing about it
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        with stages_instead_of_bars():
            code = command(sys.argv[1:] if argv is None else argv)
    except (InputError, HubError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if (fault := machine_fault(error)) is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return MACHINE_FAILED
    leave_processes()
    return code or 0
