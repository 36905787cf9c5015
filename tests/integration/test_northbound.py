"""OVN's real databases and ovn-northd, from the controller's image and without a machine: what `up` makes there is what it asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.drivers.workspace import cache_root

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
ROOT = Path(__file__).parents[2]


def test_a_second_look_finds_every_switch_and_port_as_it_must_be() -> None:
    if not list(cache_root().glob("controller-*/manifest.json")):
        pytest.skip(f"{cache_root()} has no controller image; `testbed image bake` makes one")
    argv = [sys.executable, "benchmarks/northbound.py", "2", "40"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [size["actions"] for size in json.loads(done.stdout)["sizes"]] == [23, 45]
