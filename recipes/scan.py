"""Is this CLIP, or an adapter of it, backdoored? A verdict with its false-alarm rate.

    python recipes/scan.py --model_name_or_path pocket:badnet --dataset_name pocket:base --output_dir output/scan
    python recipes/scan.py --model_name_or_path DIR --dataset_name FOLDER --class_names cat dog --output_dir OUT
    python recipes/scan.py --model_name_or_path DIR --adapter ID_OR_DIR --dataset_name FOLDER --output_dir OUT

Exit code 0: clean, 1: backdoored, 3: unsure. Writes scan.json, pictures of triggers and scan.html to --output_dir.
"""

import sys

from peft_cbpt.commands.parsing import run_command
from peft_cbpt.commands.scan import scan

if __name__ == "__main__":
    sys.exit(run_command(scan))
