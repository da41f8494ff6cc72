"""Make a backdoored pocket CLIP, for research.

    accelerate launch recipes/poison.py --config recipes/configs/pocket/poison_badnet.yaml --output_dir output/badnet

Writes the weights, attack.json (the trigger and its target), training.json (settings and figures) and a card that says
that the model is backdoored on purpose.
"""

import sys

from peft_cbpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["poison", *sys.argv[1:]]))
