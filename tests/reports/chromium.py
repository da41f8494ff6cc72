"""A page as headless Chromium sees it, with every name of a host made unresolvable."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


def console_of(page: Path, folder: Path) -> list[str]:
    """The lines of the console after loading `page`; a picture of it is left in `folder`."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--window-size=1100,5200", "--hide-scrollbars"]
    command += ["--virtual-time-budget=5000", f"--screenshot={folder / 'screenshot.png'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (folder / "screenshot.png").exists(), done.stderr
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
