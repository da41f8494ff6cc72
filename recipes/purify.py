"""Purify a suspicious CLIP.

    accelerate launch recipes/purify.py --config recipes/configs/pocket/purify.yaml
    accelerate launch recipes/purify.py --config recipes/configs/pocket/purify.yaml --num_shots 4 --output_dir out

Prints one table, and writes the adapter, results.json and before_after.png to --output_dir.
"""

import sys

from peft_cbpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["purify", *sys.argv[1:]]))
