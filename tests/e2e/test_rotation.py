"""One more topology on a real lab: up, check, down.

Each commit gets one of them, so that no run takes much longer. ``TESTBED_ROTATION=NAME`` takes another one.
`script/prove` proves all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab_commands import ROOT, checked, output_of, own_state

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
TURNS = ("separated", "udp-and-icmp")
SLOW = "ask for it with --slow"
NOT_THERE = "no guest runs on node-a, so "  # of separated
# The nodes of this one differ from those of test_lab by their networks alone.
ONLY = {"udp-and-icmp": ("--only", "NET", "--only", "VMM")}


def turn() -> str:
    """Return the topology of this run: by the tested commit, or by its name in the environment."""
    wanted = os.environ.get("TESTBED_ROTATION")
    if wanted:
        return wanted
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return TURNS[int(done.stdout.strip() or "0", 16) % len(TURNS)]


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    with own_state("tb-r", turn()) as variables:
        yield variables


def test_the_walls_of_another_topology_hold(environment: dict[str, str]) -> None:
    """Of its network, only slow checks are left out."""
    name = turn()
    file = f"topologies/{name}.yaml"
    output_of(environment, "up", file)
    data = checked(environment, name, *ONLY.get(name, ()))
    wrong = [
        (check["id"], check["case"], check["reason"])
        for check in data["checks"]
        if check["verdict"] != "pass"
    ]
    left = [item for item in wrong if SLOW not in item[2]]
    assert [item for item in left if not item[2].startswith(NOT_THERE)] == []
    assert {case for _, case, _ in left} <= {"node-a"}
    assert json.loads(output_of(environment, "plan", file, "--json"))["empty"] is True
