"""OVN's real databases and ovn-northd, from the controller's image and without a machine: what `up` makes
there is what it asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from testbed.drivers.host.content_store import remove_tree
from testbed.drivers.host.process import as_root
from testbed.drivers.host.workspace import cache_root

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
ROOT = Path(__file__).parents[2]


def test_a_second_look_finds_every_switch_and_port_as_it_must_be() -> None:
    if not list(cache_root().glob("controller-*/manifest.json")):
        pytest.skip(f"{cache_root()} has no controller image; `testbed image bake` makes one")
    argv = [sys.executable, "benchmarks/northbound.py", "2", "40"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [size["actions"] for size in json.loads(done.stdout)["sizes"]] == [23, 45]


UNDECLARED = {
    "ACL",
    "Address_Set",
    "Copp",
    "DHCP_Options",
    "DNS",
    "Load_Balancer",
    "Logical_Router",
    "Logical_Router_Policy",
    "Logical_Router_Port",
    "Logical_Router_Static_Route",
    "Logical_Switch",
    "Logical_Switch_Port",
    "Meter",
    "Meter_Band",
    "Mirror",
    "NAT",
    "NB_Global",
    "Port_Group",
    "QoS",
    "Static_MAC_Binding",
}


def test_what_no_topology_asks_for_is_told_and_taken_away() -> None:
    if not list(cache_root().glob("controller-*/manifest.json")):
        pytest.skip(f"{cache_root()} has no controller image; `testbed image bake` makes one")
    folder = Path(tempfile.mkdtemp(prefix="tb", dir="/var/tmp"))
    try:
        argv = [
            *as_root("--net"),
            sys.executable,
            str(Path(__file__).with_name("undeclared_rows.py")),
            str(folder),
        ]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    finally:
        remove_tree(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {table for table, lines in found["told"].items() if lines} == UNDECLARED
    assert found["left"] == []
