"""Test defended models harder than by the attacks they were built on, cell by cell, and write docs/robustness.md.

    python -m benchmarks.robustness --models pocket:badnet pocket:clean             # everything that is missing
    python -m benchmarks.robustness --models output/robust_zoo/* --tests planted --defences none prompts
    python -m benchmarks.robustness --photos output/photos --models output/photozoo/* --tests planted
    python -m benchmarks.robustness                                                 # the page from what is stored

A cell is a model, a defence and a test. It is stored as it is finished and not run again; the defended models
themselves are kept in --work_dir for other tests.
"""

import sys

from benchmarks.robustness.benchmark import benchmark
from peft_cbpt.commands.parsing import run_command

if __name__ == "__main__":
    sys.exit(run_command(benchmark))
