"""An image can be built on a machine that hides its pseudo-terminals."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HIDE = "mount -t tmpfs tmpfs /dev/pts"
OPEN = "import os; os.openpty()"
OFFER = f"from testbed.drivers.images import build; build._offer_terminals(); {OPEN}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hide /dev/pts in a mount namespace")
@pytest.mark.parametrize(("program", "opens"), [(OPEN, False), (OFFER, True)])
def test_a_build_opens_a_terminal_where_the_machine_has_none(program: str, opens: bool) -> None:
    script = f'{HIDE} && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) is opens, done.stderr
