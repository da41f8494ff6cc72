"""`python -m peft_cbpt`, the same as `peft-cbpt`."""

import sys

from peft_cbpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
