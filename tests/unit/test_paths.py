"""A walk that sees nothing is no wall, whatever flows a topology has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify import openflow, paths
from testbed.verify.paths import Bridge
from tests.shapes import lab_of

DHCP = "table=0, priority=9,udp,tp_src=68,tp_dst=67 actions=controller(userdata=00.00.00.02,pause)"
OTHER = "table=0, priority=9,udp,tp_src=546,tp_dst=547 actions=controller(userdata=00.00.00.05,pause)"


def _arrivals(shape: str, *rules: str) -> list[paths.Arrival]:
    lab = lab_of(shape)
    text = "\n".join(f" cookie=0x1, {rule}" for rule in (*rules, "table=0, priority=1 actions=drop"))
    found = {
        node.name: Bridge(
            node.name,
            openflow.read(text),
            {str(number): nic.tap for number, nic in enumerate((nic for guest in lab.guests_on(node.name) for nic in guest.nics), 1)},
            {},
        )
        for node in lab.nodes
    }
    fleet: Any = SimpleNamespace(testbed=lab)
    return paths.arrivals(fleet, found)


def test_a_program_must_be_given_each_question_to_dhcp() -> None:
    assert _arrivals("no flow", DHCP) == []


@pytest.mark.parametrize("rules", [(), (OTHER,), (DHCP.replace("priority=9,", "priority=9,in_port=1,"),)])
def test_a_walk_that_finds_no_way_to_dhcp_is_blind(rules: tuple[str, ...]) -> None:
    with pytest.raises(InstrumentError, match="does not find how DHCP hears"):
        _arrivals("no flow", *rules)
