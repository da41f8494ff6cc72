"""Processes that start with the libraries loaded, which saves each of them seconds of importing.

They make as few searches as tests do: `tests.conftest` is loaded, too.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

LOADED = multiprocessing.get_context("forkserver")
COMMANDS = ("purify", "evaluate", "poison", "finetune")
LOADED.set_forkserver_preload(["tests.conftest", *(f"peft_cbpt.commands.{name}" for name in COMMANDS)])
SECONDS = 300


def _program(words: Sequence[str], environment: Mapping[str, str], printed: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{printed}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__")
    else:
        sys.argv = list(words)
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")


def start(words: Sequence[str], printed: Path, **environment: str) -> BaseProcess:
    """Start a script, or `-m MODULE`, with its options; it prints to `printed` with `.out` and `.err`."""
    process = LOADED.Process(target=_program, args=(words, os.environ | environment, str(printed)))
    process.start()
    return process


def run_in_two_processes(*words: str) -> str:
    """What a script, or `-m MODULE`, with its options prints in two processes of one thread each."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(2)]
        started = [start(words, file, **both, RANK=file.name, LOCAL_RANK=file.name) for file in files]
        for process in started:
            process.join(SECONDS)
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
        assert codes == [0, 0], "\n".join(file.with_suffix(".err").read_text() for file in files)
        return "".join(file.with_suffix(".out").read_text() for file in files)
