"""Clocks of machines: one that has stood still, paused or saved, goes on with the time at which it
stopped.
"""

from __future__ import annotations

import time

from testbed.drivers.ssh.client import Host
from testbed.errors import ProvisioningError

_TOLERATED = 2.0  # seconds


def set_right(host: Host) -> str:
    """Set a machine's clock if it is wrong; return by how much it was, or the empty string.

    Raises:
        ProvisioningError: it cannot be read or set.

    """
    asked = time.time()
    text = host.must("date +%s.%N").strip()
    answered = time.time()
    try:
        behind = (asked + answered) / 2 - float(text)
    except ValueError as error:
        raise ProvisioningError(
            f"the clock of {host.name} cannot be read", fact=repr(text[:80]), remedy="run `testbed status`"
        ) from error
    if abs(behind) <= _TOLERATED + (answered - asked) / 2:
        return ""
    host.must(f"date --set=@{time.time() + (answered - asked) / 2:.3f}")
    return f"set the clock, which was {abs(behind):.0f} s {'behind' if behind > 0 else 'ahead'}"
