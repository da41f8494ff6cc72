"""Settings from a YAML file and the command line, and errors as one line with exit code 2."""

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from peft_cbpt.common.errors import HubError, InputError
from peft_cbpt.common.processes import leave_processes

INTERRUPTED = 130


def read_yaml(file: str) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        InputError: if the file cannot be read or is no mapping.
    """
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config file {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the config file {file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise InputError(f"the config file {file} must hold `name: value` lines")
    return settings


def parse(argument_types: Sequence[type], argv: Sequence[str], usage: str) -> tuple[Any, ...]:
    """Fill dataclasses from `--config FILE.yaml` and from options, which win.

    Raises:
        InputError: for an unknown name, a missing file, or a value of the wrong type.
    """
    parser = HfArgumentParser(
        list(argument_types),  # type: ignore[arg-type]
        description=usage,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", help="YAML file with any of the settings below; options override it.")
    parser.error = _raise_input_error  # type: ignore[method-assign, assignment]
    options = list(argv)
    config_file = _take_option(options, "--config")
    if config_file is not None:
        settings = read_yaml(config_file)
        known = {field.name for kind in argument_types for field in dataclasses.fields(kind) if field.init}
        if unknown := sorted(set(settings) - known):
            raise InputError(f"unknown setting {unknown[0]!r} in {config_file}; see --help for the settings")
        options = as_options(settings) + options
    try:
        parsed: Any = parser.parse_args_into_dataclasses(options, return_remaining_strings=True)
    except InputError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise InputError(" ".join(str(error).split())) from error
    if unknown_options := parsed[-1]:
        raise InputError(f"unknown option {unknown_options[0]!r}; see --help for the settings")
    return parsed[: len(argument_types)]


def folder_first(argv: Sequence[str]) -> list[str]:
    """Words of `peft-cbpt COMMAND DIR --option ...` with the leading DIR as the option `--folder`."""
    words = list(argv)
    return ["--folder", *words] if words and not words[0].startswith("-") else words


def _take_option(options: list[str], name: str) -> str | None:
    """Remove `--name value` or `--name=value` from `options` and return the value."""
    for place, option in enumerate(options):
        if option.startswith(name + "="):
            return options.pop(place).removeprefix(name + "=")
        if option == name:
            if place + 1 == len(options):
                raise InputError(f"{name} needs a file")
            del options[place]
            return options.pop(place)
    return None


def as_options(settings: dict[str, Any]) -> list[str]:
    """YAML values as command-line words, so that both go through the same checks."""
    options = []
    for name, value in settings.items():
        if value is None:
            continue
        words = [json.dumps(word) if isinstance(word, dict) else str(word) for word in _as_list(value)]
        if words:
            options += [f"--{name}", *words] if len(words) > 1 else [f"--{name}={words[0]}"]
    return options


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _raise_input_error(message: str) -> None:
    raise InputError(" ".join(message.split()))


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command; the first process prints an error of input or Hub as one line. Returns the exit code."""
    # peft 0.21 asks transformers 5.23 for a name that was replaced; users can do nothing about it
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    try:
        command(sys.argv[1:] if argv is None else argv)
    except (InputError, HubError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    leave_processes()
    return 0
