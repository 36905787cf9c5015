"""What does not follow from the topology in OVN's northbound database is told, and taken away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from testbed.plan.ovn_northbound import CONTROLS, REST, references, strays, told

SWITCH, PORT, RULE, LIMIT, DHCP, GLOBAL, LISTENER = (uuid4() for _ in range(7))
Rows = dict[str, list[dict[str, Any]]]


def _clean() -> Rows:
    """Return what a database holds of a lab with one switch and one port, as OVN 25.03 has it."""
    own, none = {"external_ids": {"testbed": "lab"}}, {"external_ids": {}}
    unused: dict[str, Any] = {
        "tag": [],
        "type": "",
        "enabled": [],
        "parent_name": [],
        "mirror_rules": [],
        "peer": [],
    }
    port = {
        "_uuid": PORT,
        "name": "p",
        "addresses": ["a"],
        "port_security": ["a"],
        "options": {"ct-zone-limit": "64"},
        "up": True,
        "dhcpv4_options": DHCP,
        "dhcpv6_options": [],
        **unused,
        "external_ids": {"testbed": "lab", "resource": "red/web/app"},
    }
    switch = {
        "_uuid": SWITCH,
        "name": "red/app",
        "acls": RULE,
        "ports": [PORT],
        "qos_rules": [LIMIT],
        "other_config": {"subnet": "x"},
        "dns_records": [],
        "load_balancer": [],
        "copp": [],
        "forwarding_groups": [],
        **own,
    }
    rule = {
        "_uuid": RULE,
        "direction": "to-lport",
        "priority": 1,
        "match": "1",
        "action": "drop",
        "log": False,
        "tier": 0,
        "label": 0,
        "meter": [],
        "options": {},
        **none,
    }
    limit = {
        "_uuid": LIMIT,
        "match": 'inport == "p"',
        "direction": "from-lport",
        "priority": 1000,
        "bandwidth": {"rate": 1},
        "action": {},
    }
    options = {"mac_prefix": "0a", "max_tunid": "9", "northd_internal_version": "25", "svc_monitor_mac": "0b"}
    whole = {
        "_uuid": GLOBAL,
        "name": "",
        "nb_cfg": 3,
        "ipsec": False,
        "connections": LISTENER,
        "options": options,
        "ssl": [],
        **none,
    }
    dhcp = {
        "_uuid": DHCP,
        "cidr": "10.0.0.0/24",
        "options": {"mtu": "1400"},
        "external_ids": {"switch": "red/app"},
    }
    listener = {"_uuid": LISTENER, "target": "pssl:6641", "is_connected": True, "other_config": {}, **none}
    return {
        "NB_Global": [whole],
        "Connection": [listener],
        "Logical_Switch": [switch],
        "Logical_Switch_Port": [port],
        "ACL": [rule],
        "QoS": [limit | none],
        "DHCP_Options": [dhcp],
        "NAT": [],
        "Mirror": [],
    }


def test_what_up_has_made_is_all_that_there_may_be() -> None:
    assert strays(_clean(), "lab") == []
    assert set(told([])) == set(CONTROLS)
    assert not any(told([]).values())


def _added(table: str, **row: Any) -> Callable[[Rows], None]:
    return lambda rows: rows.setdefault(table, []).append({"_uuid": uuid4(), "external_ids": {}, **row})


def _set(table: str, column: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[table][0].update({column: value})


@pytest.mark.parametrize(
    ("change", "table", "text"),
    [
        (
            _added("NAT", external_ip="192.0.2.1", logical_ip="10.0.0.2"),
            "NAT",
            "external_ip 192.0.2.1, logical_ip 10.0.0.2",
        ),
        (_added("Logical_Router", name="way-out"), "Logical_Router", "Logical_Router way-out"),
        (
            _added("Load_Balancer", name="lb", vips={"10.0.0.9:80": "10.0.0.2:80"}),
            "Load_Balancer",
            "vips 10.0.0.9:80=10.0.0.2:80",
        ),
        (_added("Mirror", name="copy", sink="192.0.2.1"), "Mirror", "Mirror copy (sink 192.0.2.1)"),
        (
            _added("ACL", direction="to-lport", match="ip", action="allow", priority=2000),
            "ACL",
            "ACL ip (action allow)",
        ),
        (_added("Port_Group", name="all", ports=[PORT]), "Port_Group", "Port_Group all"),
        (
            _added("QoS", match='inport == "p"', direction="to-lport", bandwidth={"rate": 9}, action={}),
            "QoS",
            'QoS inport == "p"',
        ),
        (_added("DNS", records={"db.blue": "10.0.0.9"}), "DNS", "records db.blue=10.0.0.9"),
        (
            _added("DHCP_Options", cidr="10.0.0.0/24", options={"router": "10.0.0.1"}),
            "DHCP_Options",
            "router=10.0.0.1",
        ),
        (_added("Logical_Switch", name="foreign"), "Logical_Switch", "Logical_Switch foreign"),
        (
            _added("Logical_Switch", name="other", external_ids={"testbed": "another"}),
            "Logical_Switch",
            "Logical_Switch other",
        ),
        (
            _added("Logical_Switch_Port", name="spy", addresses=["unknown"]),
            "Logical_Switch_Port",
            "spy (addresses unknown)",
        ),
        (_added("Connection", target="ptcp:6641"), "Connection", "Connection ptcp:6641"),
        (_added("Invented_Next_Year", name="x"), REST, "Invented_Next_Year x"),
        (
            _set("NB_Global", "options", {"use_ct_inv_match": "false"}),
            "NB_Global",
            "has the option use_ct_inv_match=false",
        ),
        (_set("NB_Global", "ipsec", True), "NB_Global", "has ipsec True"),
        (_set("Logical_Switch", "load_balancer", [UUID(int=7)]), "Logical_Switch", "has load_balancer"),
        (
            _set("Logical_Switch_Port", "type", "localnet"),
            "Logical_Switch_Port",
            "red/web/app has type localnet",
        ),
        (
            _set("Logical_Switch_Port", "options", {"network_name": "x"}),
            "Logical_Switch_Port",
            "the option network_name=x",
        ),
        (
            _set("Logical_Switch_Port", "mirror_rules", [UUID(int=7)]),
            "Logical_Switch_Port",
            "has mirror_rules",
        ),
        (_set("ACL", "tier", 2), "ACL", "has tier 2"),
        (_set("QoS", "action", {"dscp": 1}), "QoS", "has action dscp=1"),
    ],
)
def test_what_does_not_follow_from_the_topology_is_told(
    change: Callable[[Rows], None], table: str, text: str
) -> None:
    rows = _clean()
    change(rows)
    found = strays(rows, "lab")
    assert len(found) == 1
    (line,) = told(found)[table]
    assert text in line


def test_a_row_that_goes_is_let_go_by_the_rows_that_stay() -> None:
    rows, port, rule = _clean(), uuid4(), uuid4()
    rows["Logical_Switch_Port"].append({"_uuid": port, "name": "spy", "external_ids": {}})
    rows["Port_Group"] = [{"_uuid": uuid4(), "name": "all", "acls": rule, "external_ids": {}}]
    rows["ACL"].append({"_uuid": rule, "match": "ip", "external_ids": {}})
    rows["Logical_Switch"][0]["ports"].append(port)
    gone = {stray.row for stray in strays(rows, "lab") if stray.column is None}
    assert gone == {port, rule, rows["Port_Group"][0]["_uuid"]}
    assert list(references(rows, gone)) == [("Logical_Switch", SWITCH, "ports", port)]
