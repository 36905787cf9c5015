"""Counters of a firewall are read from its ruleset, or the witness is blind."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify.witnesses import firewall_log

_REFUSED = {"set": {"name": "refused", "size": 9}}


def _match(field: str, right: object) -> dict[str, Any]:
    left = {"payload": {"protocol": "udp", "field": field}}
    return {"match": {"op": "==", "left": left, "right": right}}


def test_the_counters_of_a_machine_are_read_from_its_ruleset() -> None:
    rule = {"rule": {"expr": [_match("dport", 53), {"counter": {"packets": 3}}, {"accept": None}]}}
    machine: Any = SimpleNamespace(name="node", read=lambda _: json.dumps({"nftables": [_REFUSED, rule]}))
    found = firewall_log.read_ledger(machine)
    assert (found.size, [(item.protocol, item.ports) for item in found.passing]) == (
        9,
        [("udp", ((53, 53),))],
    )
    for text in ("{}", "[]", "no json", '{"nftables": []}'):
        machine.read = lambda _, text=text: text
        with pytest.raises(InstrumentError, match="firewall of node cannot be read"):
            firewall_log.read_ledger(machine)


@pytest.mark.parametrize(
    ("matches", "ports"),
    [([], None), ([_match("dport", 53)], ((53, 53),)), ([_match("dport", 53), _match("dport", 54)], None)],
)
def test_a_rule_with_one_match_on_the_port_is_exact(matches: list[Any], ports: Any) -> None:
    found = firewall_log._passing([*matches, {"counter": {"packets": 3}}, {"accept": None}])
    assert found is not None
    assert found.ports == ports
