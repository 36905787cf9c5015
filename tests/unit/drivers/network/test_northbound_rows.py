"""Rows of OVN's northbound database: a second one of a label, match or name is visible.

It hides no other row.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from testbed.drivers.network.northbound_rows import ports, row_of, sent_by, switches
from testbed.plan.diff import Verb, diff
from testbed.plan.resources import Key, Kind, Resource

_PORT = "0c4f"


def _row(**columns: Any) -> dict[str, Any]:
    return {"_uuid": uuid4(), "external_ids": {"testbed": "lab"}, **columns}


def _switch(name: str = "red/app", **columns: Any) -> dict[str, Any]:
    return _row(
        name=name,
        other_config={"subnet": "10.0.0.0/24", "requested-tnl-key": "7"},
        dns_records=[],
        acls=[],
        ports=[],
        **columns,
    )


def _port(name: str = _PORT, label: str = "red/web/app", **columns: Any) -> dict[str, Any]:
    base = {
        "addresses": ["a 1"],
        "port_security": ["a 1"],
        "dhcpv4_options": [],
        "dhcpv6_options": [],
        "options": {},
        "up": True,
    }
    return {**_row(name=name, **base), "external_ids": {"testbed": "lab", "resource": label}, **columns}


def _dhcp(**options: str) -> dict[str, Any]:
    ids = {"switch": "red/app"}
    return {"_uuid": uuid4(), "external_ids": ids, "cidr": "10.0.0.0/24", "options": options}


def _rule(action: str = "drop") -> dict[str, Any]:
    return {"_uuid": uuid4(), "direction": "from-lport", "priority": 1, "match": "1", "action": action}


def _qos(rate: int | None, match: str = sent_by(_PORT)) -> dict[str, Any]:
    return {"_uuid": uuid4(), "match": match, "bandwidth": {} if rate is None else {"rate": rate}}


def _tables(**rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = ("Logical_Switch", "Logical_Switch_Port", "ACL", "DHCP_Options", "QoS")
    return {name: rows.get(name.lower(), []) for name in names}


def _removed(kind: Kind, found: dict[str, dict[str, Any]], wanted: str) -> list[str]:
    """Return the rows that `up` would remove, if the first row of a label is as desired."""
    own = Resource(Key("controller", kind, wanted), found[wanted])
    plan = diff({own.key: own}, {Key("controller", kind, label): item for label, item in found.items()})
    assert {action.verb for action in plan.actions} <= {Verb.DELETE}
    return [action.key.name for action in plan.actions]


def test_one_row_of_each_reads_as_before() -> None:
    rule, port, dhcp = _rule(), _port(), _dhcp(mtu="1400")
    port["dhcpv4_options"] = dhcp["_uuid"]
    tables = _tables(
        logical_switch=[{**_switch(), "acls": [rule["_uuid"]], "ports": [port["_uuid"]]}],
        logical_switch_port=[port],
        acl=[rule],
        dhcp_options=[dhcp],
        qos=[_qos(500)],
    )
    assert switches("lab", tables)["red/app"] == {
        "network": "10.0.0.0/24",
        "tunnel_key": 7,
        "dhcp": ["cidr=10.0.0.0/24", "mtu=1400"],
        "dhcp6": [],
        "names": 0,
        "options": [],
        "acls": ["from-lport 1 drop: 1"],
    }
    found = ports("lab", tables)["red/web/app"]
    assert (found["switch"], found["dhcp"], found["bandwidth"], found["port"], found["up"]) == (
        "red/app",
        "red/app",
        500_000,
        _PORT,
        True,
    )
    assert switches("other", tables) == ports("other", tables) == {}


@pytest.mark.parametrize("turn", [1, -1])
def test_a_second_switch_of_a_name_is_drift(turn: int) -> None:
    """In any order, the row with the ports is the switch; the other one is removed by its id."""
    port = _port()
    used, other = (
        {**_switch(), "ports": [port["_uuid"]]},
        {**_switch(), "other_config": {"subnet": "10.0.0.0/8"}},
    )
    tables = _tables(logical_switch=[used, other][::turn], logical_switch_port=[port])
    found = switches("lab", tables)
    (gone,) = _removed(Kind.SWITCH, found, "red/app")
    assert row_of(gone) == str(other["_uuid"])
    assert found["red/app"]["network"] == "10.0.0.0/24"
    assert row_of("red/app") == "red/app"
    assert ports("lab", tables)["red/web/app"]["switch"] == "red/app"


@pytest.mark.parametrize("turn", [1, -1])
def test_a_second_port_of_a_label_is_drift(turn: int) -> None:
    stranger = _port("evil", addresses=["unknown"], up=False)
    found = ports("lab", _tables(logical_switch_port=[_port(), stranger][::turn]))
    assert _removed(Kind.PORT, found, "red/web/app") == ["red/web/app evil"]
    assert found["red/web/app evil"]["port"] == "evil"


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("other", [_dhcp(router="169.254.169.254"), _dhcp(), _dhcp(mtu="1400")])
def test_a_second_row_of_dhcp_settings_shows(turn: int, other: dict[str, Any]) -> None:
    tables = _tables(logical_switch=[_switch()], dhcp_options=[_dhcp(mtu="1400"), other][::turn])
    assert switches("lab", tables)["red/app"]["dhcp"] != ["cidr=10.0.0.0/24", "mtu=1400"]


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("rate", [900, 500, 0, None])
def test_a_second_limit_of_a_port_shows(turn: int, rate: int | None) -> None:
    tables = _tables(logical_switch_port=[_port()], qos=[_qos(500), _qos(rate)][::turn])
    assert ports("lab", tables)["red/web/app"]["bandwidth"] != 500_000


def test_a_rule_that_is_there_twice_shows() -> None:
    rules = [_rule(), _rule()]
    tables = _tables(logical_switch=[{**_switch(), "acls": [rule["_uuid"] for rule in rules]}], acl=rules)
    assert switches("lab", tables)["red/app"]["acls"] == ["from-lport 1 drop: 1"] * 2


@pytest.mark.parametrize("turn", [1, -1])
def test_a_port_on_two_switches_shows(turn: int) -> None:
    """A port of a foreign switch of the same name shows as well."""
    port = _port()
    for other in (
        {**_switch("red/back"), "ports": [port["_uuid"]]},
        {**_switch(), "external_ids": {}, "ports": [port["_uuid"]]},
    ):
        tables = _tables(
            logical_switch=[{**_switch(), "ports": [port["_uuid"]]}, other][::turn],
            logical_switch_port=[port],
        )
        assert ports("lab", tables)["red/web/app"]["switch"] != "red/app"
    alone = _tables(
        logical_switch=[_switch(), {**_switch(), "external_ids": {}, "ports": [port["_uuid"]]}],
        logical_switch_port=[port],
    )
    assert ports("lab", alone)["red/web/app"]["switch"] != "red/app"
