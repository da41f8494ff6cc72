"""Run the experiments in benchmarks/experiments, cell by cell, and write docs/results.md.

    python -m benchmarks.paper                                       # everything that is missing
    python -m benchmarks.paper --experiments table1 --seeds 0        # one table, one seed
    python -m benchmarks.paper --experiments table1 --seeds 7 --target_class dog --page my/results.md
    python -m benchmarks.paper --quick                               # everything in small
    python -m benchmarks.paper --render_only true                    # the page from what is stored

A cell is stored as it is finished and not run again; a table marks what is missing. Poisoned models that are missing
are made first, which takes ten minutes and more each.
"""

import sys

from benchmarks.paper.benchmark import benchmark
from peft_cbpt.commands.parsing import run_command

if __name__ == "__main__":
    sys.exit(run_command(benchmark))
