"""`peft-cbpt` from within Python; the program itself is `peft_cbpt_cli`, which starts without torch."""

from peft_cbpt_cli import COMMANDS, main

__all__ = ["COMMANDS", "main"]
