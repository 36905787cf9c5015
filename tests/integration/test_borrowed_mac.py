"""An interface that has another MAC address for a while, on real devices of the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

BORROWED = """
import json, subprocess
from pathlib import Path
from testbed.payload.probe.sender import wearing
subprocess.run(["ip", "link", "add", "one", "up", "type", "veth", "peer", "name", "two"], check=True)
address = Path("/sys/class/net/one/address")
found = [address.read_text().strip()]
with wearing("one", "0a:00:00:00:00:07"):
    found.append(address.read_text().strip())
    with wearing("one", ""):
        found.append(address.read_text().strip())
print(json.dumps([*found, address.read_text().strip(), Path("/sys/class/net/one/flags").read_text().strip()]))
"""


def test_an_interface_wears_a_borrowed_mac_address_for_a_while() -> None:
    """And stays up meanwhile."""
    mount = 'mount -t sysfs sys /sys && exec "$@"'
    argv = ["unshare", "--net", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", BORROWED]
    own, worn, still, after, flags = json.loads(
        subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    )
    assert worn == still == "0a:00:00:00:00:07"
    assert own == after != worn
    assert int(flags, 16) & 1
