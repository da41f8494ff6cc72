"""Draw what the zoo's attacks do to pictures of the pocket world: original, triggered, ten times the difference.

    python recipes/contact_sheet.py --output docs/images/attacks.png

The triggers are those of the zoo (recipes/configs/pocket/poison_ATTACK.yaml); patches are optimised for it, which
takes some minutes.
"""

import sys

from peft_cbpt.commands.contact_sheet import contact_sheet
from peft_cbpt.commands.parsing import run_command

if __name__ == "__main__":
    sys.exit(run_command(contact_sheet))
