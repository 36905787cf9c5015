"""Other topologies on a real lab: up, check, down. `script/prove` proves all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab_commands import checked, output_of, own_state

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
SLOW = "ask for it with --slow"
NOT_THERE = "no guest runs on node-a, so "  # of separated
# The nodes of this one differ from those of test_lab by their networks alone.
ONLY = {"udp-and-icmp": ("--only", "NET", "--only", "VMM")}


@pytest.fixture
def environment(name: str) -> Iterator[dict[str, str]]:
    with own_state("tb-r", name) as variables:
        yield variables


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.turn(name)) for name in ("separated", "udp-and-icmp")]
)
def test_the_walls_of_another_topology_hold(environment: dict[str, str], name: str) -> None:
    """Of its network, only slow checks are left out."""
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
