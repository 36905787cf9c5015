"""What a host may send as its state."""

from __future__ import annotations

import json
from typing import Any

import pytest

from testbed.adoption.scope import Scope
from testbed.adoption.state import Entry, Unit, parsed

DIGEST = "a" * 64
STATE: dict[str, Any] = {
    "version": 1,
    "scope": {"copied": ["/etc"], "noted": ["/usr"], "listed": [], "left": []},
    "machine": {"board": "b", "boot": "1"},
    "packages": ["acl\t2.3\tinstalled", "gone:amd64\t1:1.0-1~x+b1\tconfig-files"],
    "files": [
        f"f 644 0 0 12 1700000000000000000 {DIGEST} - /etc/a b",
        "l 777 0 0 0 0 - - /etc/link\0/dev/null",
        "d 755 0 0 0 0 - system.posix_acl_access=0200 /etc",
        "d 755 0 0 0 0 - - /",
    ],
    "units": {"ssh.service": ["active", "running", "f00d"]},
    "sysctls": {"vm/swappiness": "60\n"},
    "modules": ["kvm"],
    "links": {"eth0": "52:54:00:00:00:01 hardware"},
    "mounts": ["/"],
    "rules": "",
}


def test_a_state_is_read() -> None:
    state = parsed(json.dumps(STATE).encode())
    assert state.scope == Scope(("/etc",), ("/usr",), (), ())
    assert state.packages == {"acl": "2.3"}
    assert state.files["/etc/a b"] == Entry("f", "644", 0, 0, 12, 1700000000000000000, DIGEST, "", "")
    assert state.files["/etc/link"].target == "/dev/null"
    assert state.files["/etc"].attributes == "system.posix_acl_access=0200"
    assert state.units == {"ssh.service": Unit("active", "running", "f00d")}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"scope": {"copied": ["/etc"], "noted": [], "listed": []}},
        {"scope": {"copied": ["etc"], "noted": [], "listed": [], "left": []}},
        {"files": ["f 644 0 0 1 1 - - /etc/../root/.ssh/authorized_keys"]},
        {"files": ["f 644 0 0 1 1 - - etc/relative"]},
        {"files": ["f 644 0 0 1 1 - - /etc//double"]},
        {"files": ["f 999 0 0 1 1 - - /etc/a"]},
        {"files": ["f 644 0 0 1 1 ABC - /etc/a"]},
        {"files": ["f 644 0 0 1 1 - - /etc/a\0/etc/b"]},
        {"files": ["l 777 0 0 0 0 - - /etc/a"]},
        {"files": [7]},
        {"packages": ["--purge\t1\tinstalled"]},
        {"packages": ["acl"]},
        {"modules": ["-f"]},
        {"modules": ["a b"]},
        {"units": {"--now": ["active", "running", ""]}},
        {"units": {"a.service; reboot": ["active", "running", ""]}},
        {"units": {"a.service": ["active"]}},
        {"sysctls": {"../../etc/passwd": "root"}},
        {"sysctls": {"vm/swappiness": 60}},
        {"links": []},
        {"rules": None},
    ],
)
def test_what_is_no_state_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parsed(json.dumps(STATE | change).encode())
