import os
import subprocess
import sys

import pytest

COMMAND_OF_TWO_PROCESSES = """
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from peft_cbpt.common.processes import from_all_processes, join_processes
from peft_cbpt.commands.parsing import run_command

def gloo_threads():
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)

def command(argv):
    state = join_processes()
    model = DistributedDataParallel(torch.nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    assert from_all_processes(state.process_index) == [0, 1]
    print(f"before: {gloo_threads() > 0}", flush=True)

assert run_command(command) == 0
print(f"after: {gloo_threads() > 0}", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_of_the_process_group_outlives_a_command(tmp_path):
    """One that does takes the interpreter lock while the interpreter ends, and the process aborts."""
    (tmp_path / "script.py").write_text(COMMAND_OF_TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("before: True") == done.stdout.count("after: False") == 2, done.stdout
