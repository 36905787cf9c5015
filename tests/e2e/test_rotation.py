"""One more topology on a real lab: up, check, down. Each commit gets one of them, so that no run takes much
longer.

``TESTBED_ROTATION=NAME`` takes another one. `script/prove` proves all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
TURNS = ("separated", "udp-and-icmp")
SLOW = "ask for it with --slow"
NOT_THERE = "no guest runs on node-a, so "  # of separated


def turn() -> str:
    """Return whose turn it is: by the commit that is tested, or by its name in the environment."""
    wanted = os.environ.get("TESTBED_ROTATION")
    if wanted:
        return wanted
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return TURNS[int(done.stdout.strip() or "0", 16) % len(TURNS)]


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A state folder of its own, so that the user's labs are left alone; images are shared."""
    state = Path("/var/tmp" if os.geteuid() == 0 else Path.home()) / f"tb-r{os.getpid()}"
    variables = {**os.environ, "TESTBED_STATE_DIR": str(state)}
    yield variables
    subprocess.run(_command("down", turn()), env=variables, cwd=ROOT, check=False, capture_output=True)
    subprocess.run(["rm", "-rf", str(state)], check=False)


def _command(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("testbed")), *words]


def _testbed(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        _command(*words), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, (
        f"{words} ended with {done.returncode}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def test_the_walls_of_another_topology_hold(environment: dict[str, str]) -> None:
    """And of its network nothing is left out but what is slow."""
    name = turn()
    file = f"topologies/{name}.yaml"
    _testbed(environment, "up", file)
    data = json.loads(_testbed(environment, "check", name, "--json"))
    wrong = [
        (check["id"], check["case"], check["reason"])
        for check in data["checks"]
        if check["verdict"] != "pass"
    ]
    left = [item for item in wrong if SLOW not in item[2]]
    assert [item for item in left if not item[2].startswith(NOT_THERE)] == []
    assert {case for _, case, _ in left} <= {"node-a"}
    assert json.loads(_testbed(environment, "plan", file, "--json"))["empty"] is True
