"""What the datapath's actions and the databases' tables say."""

from __future__ import annotations

import pytest

from testbed.verify.witness import passes, rows


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
    data = [[["uuid", "a-1"], "node-a", ["set", [True]], ["map", [["key", "flow"]]]], [["uuid", "a-2"], "", ["set", []], ["map", []]]]
    found = rows({"headings": ["_uuid", "name", "up", "options"], "data": data})
    assert found[0] == {"_uuid": "a-1", "name": "node-a", "up": [True], "options": {"key": "flow"}}
    assert found[1] == {"_uuid": "a-2", "name": "", "up": [], "options": {}}
