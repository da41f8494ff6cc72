"""Where the package keeps what it can make again."""

import os
from pathlib import Path

CACHE_VARIABLE = "PEFT_CBPT_CACHE"


def default_cache_dir() -> Path:
    """`PEFT_CBPT_CACHE`, else ~/.cache/peft_cbpt (below `XDG_CACHE_HOME` where that is set)."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(CACHE_VARIABLE) or f"{home}/peft_cbpt").expanduser()
