"""The baseline defences: fine-tune a suspicious CLIP on clean pairs, with Eq. 3 (ft) or as CleanCLIP does.

    accelerate launch recipes/finetune.py --model_name_or_path pocket:badnet --method cleanclip --output_dir OUT

Writes the fine-tuned model and `training.json`.
"""

import sys

from peft_cbpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
