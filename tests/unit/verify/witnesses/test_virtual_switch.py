"""The datapath's actions and the databases' tables, as parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checks.support.network_observation import Survey, judge
from testbed.errors import InstrumentError
from testbed.model.resolve import resolve
from testbed.plan.resources import Kind, central
from testbed.topology_file.loader import read
from testbed.verify.attackers.worker import Attempt
from testbed.verify.evidence import Evidence
from testbed.verify.witnesses.virtual_switch import WitnessFinding, against, logical, passes, rows

LAB = resolve(read(Path(__file__).parents[4] / "topologies/two-tenants.yaml").spec)
JUDGES = (
    "NET-02",
    "NET-03",
    "NET-04",
    "NET-05",
    "NET-06",
    "NET-07",
    "NET-08",
    "NET-11",
)  # checks that ask this witness


@pytest.mark.parametrize("actions", [
    "drop",
    "ct(zone=5,nat),recirc(0x1); drop",
    "ct(commit,zone=5,mark=0/0x41,label=0/0xffff00000000000000000000,nat(src))",
    "push_vlan(vid=1,pcp=0),pop_vlan",
    "set(eth(dst=0a:00:00:00:00:01)),ct_clear,drop",
])  # fmt: skip
def test_what_stays_within_the_switch_is_stopped(actions: str) -> None:
    assert not passes(actions)


@pytest.mark.parametrize("actions", [
    "3",
    "ct(commit,zone=5,nat(src)),3",
    "ct(zone=5,nat),recirc(0x1); ct(commit),set(tunnel(tun_id=0x1,dst=198.18.1.79,geneve({class=0x102}))),1",
    "pop_vlan,5",
    "userspace(pid=1,controller(reason=1))",
    "clone(set(eth(dst=0a:00:00:00:00:01)),4)",
    "tap4929e036",
])  # fmt: skip
def test_what_goes_to_a_port_a_tunnel_or_a_program_passes(actions: str) -> None:
    assert passes(actions)


def test_a_table_of_ovsdb_is_read_by_its_headings() -> None:
    data = [
        [["uuid", "a-1"], "node-a", ["set", [True]], ["map", [["key", "flow"]]]],
        [["uuid", "a-2"], "", ["set", []], ["map", []]],
    ]
    found = rows({"headings": ["_uuid", "name", "up", "options"], "data": data})
    assert found[0] == {"_uuid": "a-1", "name": "node-a", "up": [True], "options": {"key": "flow"}}
    assert found[1] == {"_uuid": "a-2", "name": "", "up": [], "options": {}}


class Databases:
    """OVN's databases of a lab, with rows that tests can add."""

    def __init__(self) -> None:
        wanted = list(central(LAB))
        self.held = {
            kind: {item.key.name: dict(item.properties) for item in wanted if item.key.kind is kind}
            for kind in Kind
        }
        nics = [(guest, nic) for guest in LAB.guests for nic in guest.nics]
        self.bindings = [[nic.port, nic.port_security, ["uuid", guest.node], True] for guest, nic in nics]

    def switches(self) -> dict[str, Any]:
        return self.held[Kind.SWITCH]

    def ports(self) -> dict[str, Any]:
        return self.held[Kind.PORT]

    def read(self, _: str) -> str:
        bindings = {"headings": ["logical_port", "port_security", "chassis", "up"], "data": self.bindings}
        nodes = [[["uuid", node.name], node.name, node.name] for node in LAB.nodes]
        return (
            f"{json.dumps(bindings)}\n\n"
            f"{json.dumps({'headings': ['_uuid', 'name', 'hostname'], 'data': nodes})}"
        )


def _findings(databases: Databases, folder: Path) -> list[WitnessFinding]:
    lab = SimpleNamespace(central=SimpleNamespace(northbound=databases))
    machines = {LAB.controller.name: databases}
    return logical(
        SimpleNamespace(
            topology=LAB, lab=lab, machines=machines, evidence=Evidence(folder), observe_once=lambda *_: {}
        )
    )  # type: ignore[arg-type]


def _set(kind: Kind, name: str, value: Any) -> Callable[[Databases], None]:
    def change(databases: Databases) -> None:
        databases.held[kind]["red/app" if kind is Kind.SWITCH else "red/web/app"][name] = (
            value(databases) if callable(value) else value
        )

    return change


def _rule(text: str) -> Callable[[Databases], None]:
    return _set(
        Kind.SWITCH, "acls", lambda databases: [*databases.held[Kind.SWITCH]["red/app"]["acls"], text]
    )


def _bind(place: int, value: Any) -> Callable[[Databases], None]:
    def change(databases: Databases) -> None:
        databases.bindings[0][place] = value

    return change


MAC = LAB.guests[0].nics[0].mac


@pytest.mark.parametrize(("change", "red"), [
    (lambda _: None, set()),
    (_rule("from-lport 2000 allow: ip"), set()),
    (_rule("from-lport 2000 allow: udp.src == 67"), {"NET-06"}),
    (_rule("from-lport 2000 allow: udp.dst == {4789, 6081}"), {"NET-08"}),
    (_set(Kind.PORT, "security", []), {"NET-02", "NET-03", "NET-04", "NET-05"}),
    (_set(Kind.PORT, "security", [MAC]), {"NET-03", "NET-04", "NET-05"}),
    (_set(Kind.PORT, "addresses", "unknown"), {"NET-11"}),
    (_set(Kind.PORT, "connections", 0), set()),
    (_set(Kind.SWITCH, "options", ["vlan-passthru=true"]), {"NET-07"}),
    (_set(Kind.SWITCH, "dhcp", ["router=10.0.0.1"]), set()),
    (_set(Kind.SWITCH, "tunnel_key", 7), {"NET-08"}),
    (_bind(1, ["set", []]), {"NET-02", "NET-03", "NET-04", "NET-05"}),
    (_bind(2, ["uuid", "node-b"]), {"NET-08"}),
    (_bind(2, ["set", []]), {"NET-08"}),
])  # fmt: skip
def test_a_witness_judges_the_controls_that_rest_on_it(
    change: Callable[[Databases], None], red: set[str], tmp_path: Path
) -> None:
    databases = Databases()
    change(databases)
    found = _findings(databases, tmp_path)
    assert {control for control in JUDGES if against(found, control)} == red


def test_a_check_of_forged_frames_is_not_red_for_what_rests_on_another_control() -> None:
    lies = [
        SimpleNamespace(control=control, mark=control, through=None, probe=None)
        for control in ("NET-02", "NET-03")
    ]
    seen = Survey(SimpleNamespace(arrivals=lambda _: {}, doubt=None, concealed=dict, past=dict), {}, lies)  # type: ignore[arg-type]
    rule = WitnessFinding(frozenset({"NET-01", "NET-02"}), "a rule")
    told = {"survey": seen, "pipeline": {"NET-02": "drop", "NET-03": "drop"}, "labels": [rule]}
    fleet: Any = SimpleNamespace(observe_once=lambda name, _: told[name])
    assert judge(fleet, "NET-03") == []
    assert judge(fleet, "NET-02") == ["a rule"]


def test_what_is_tried_in_vain_or_not_is_said_in_words() -> None:
    assert str(Attempt("read", "/etc/shadow")) == "read /etc/shadow"


def test_what_is_too_much_is_said_in_words(tmp_path: Path) -> None:
    databases = Databases()
    _rule("to-lport 2000 allow: ip")(databases)
    told = "rules: too many: every guest may be sent any IP packet (to-lport, priority 2000, allow)"
    assert against(_findings(databases, tmp_path), "NET-01") == [
        f"northbound: network red/app on controller: {told}"
    ]


def test_where_a_port_is_bound_is_said_in_words(tmp_path: Path) -> None:
    databases = Databases()
    _bind(2, ["set", []])(databases)
    (told,) = against(_findings(databases, tmp_path), "NET-13")
    assert told == "southbound: the interface of red/web on app is bound on no node, and must be on node-a"


@pytest.mark.parametrize("up", [False, ["set", []]])
def test_a_guest_that_is_not_on_its_network_tells_nothing(up: Any, tmp_path: Path) -> None:
    databases = Databases()
    _bind(3, up)(databases)
    with pytest.raises(InstrumentError, match="a guest is not on its network"):
        _findings(databases, tmp_path)


def test_a_database_that_prints_garbage_is_no_witness(tmp_path: Path) -> None:
    databases = Databases()
    databases.bindings = [["port"]]
    with pytest.raises(InstrumentError, match="cannot be read"):
        _findings(databases, tmp_path)
