"""Measure classifiers on datasets under triggers.

    accelerate launch recipes/evaluate_classifiers.py --config recipes/configs/pocket/evaluate.yaml
    torchrun --nproc_per_node 2 recipes/evaluate_classifiers.py --config CONFIG.yaml --output_dir out

Prints one table and writes evaluation.json. A cell (classifier, dataset, attack) that was finished before is not
computed again. (A script called evaluate.py would hide the `evaluate` library from all scripts of this folder.)
"""

import sys

from peft_cbpt.commands.evaluate import evaluate
from peft_cbpt.commands.parsing import run_command

if __name__ == "__main__":
    sys.exit(run_command(evaluate))
