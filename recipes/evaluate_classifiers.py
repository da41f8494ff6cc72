"""Measure classifiers on datasets under triggers.

    accelerate launch recipes/evaluate_classifiers.py --config recipes/configs/pocket/evaluate.yaml
    torchrun --nproc_per_node 2 recipes/evaluate_classifiers.py --config CONFIG.yaml --output_dir out

Prints one table and writes evaluation.json. A cell (classifier, dataset, attack) that was finished before is not
computed again. (A script called evaluate.py would hide the `evaluate` library from all scripts of this folder.)
"""

import sys

from peft_cbpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
