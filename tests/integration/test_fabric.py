"""Real bridges and taps in a network namespace of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

PROGRAM = """
import json
from ipaddress import IPv4Interface
from testbed.drivers.network.bridges import Fabric
from testbed.errors import ProvisioningError
mine, other = Fabric("mine"), Fabric("other")
mine.create_bridge("br-x", "lab-network=management", IPv4Interface("198.18.0.1/24"))
mine.create_tap("tap-x", "tap=node/management", "br-x")
other.create_bridge("br-y", "lab-network=management", None)
before = [(l.name, l.resource, l.master, l.up, l.addresses) for l in mine.links()]
try:
    mine.create_tap("tap-z", "tap=z", "no-such-bridge")
    error = None
except ProvisioningError as caught:
    error = caught.what
mine.delete("tap-x")
mine.delete("br-x")
print(json.dumps({"before": before, "error": error, "after": [l.name for l in mine.links()], "others": [l.name for l in other.links()]}))
"""  # noqa: E501 - lines of a program


def test_links_are_made_marked_listed_and_removed() -> None:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun cannot be opened by this user")
    unshare = shutil.which("unshare") or "unshare"
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = [unshare, *user, "--net", sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["before"] == [
        ["br-x", "lab-network=management", "", True, ["198.18.0.1/24"]],
        ["tap-x", "tap=node/management", "br-x", True, []],
    ]
    assert found["error"] == "cannot make the tap tap-z"
    assert found["after"] == []
    assert found["others"] == ["br-y"]
