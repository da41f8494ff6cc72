"""Make one backdoored pocket CLIP for each of the seven attacks, for research.

    python recipes/zoo.py --seeds 0 1 2
    python recipes/zoo.py --attacks badnet wanet --seeds 7 --target_class dog

A model takes some minutes on 2 cores; what is finished is not made again. The figures of all of them are gathered in
`zoo.json` in the output folder, and in `--table FILE`.
"""

import sys

from peft_cbpt.commands.parsing import run_command
from peft_cbpt.commands.zoo import zoo

if __name__ == "__main__":
    sys.exit(run_command(zoo))
