"""Differences between a host and its record, and the orders that take them back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.adoption.compare import Difference, Step, differences, orders, restarted, same_host, tables
from testbed.adoption.scope import SCOPE
from testbed.adoption.state import Entry, HostState, Unit

FILE = Entry("f", "644", 0, 0, 3, 5, "d" * 64, "", "")
NOTED = replace(FILE, digest="")
FOLDER = Entry("d", "755", 0, 0, 0, 0, "", "", "")
LINK = Entry("l", "777", 0, 0, 0, 0, "", "", "/dev/null")
RUNNING = Unit("active", "running", "1")
STOPPED = Unit("inactive", "dead", "")
TABLE = "table inet host {\n\tchain input {\n\t}\n}\n"
BEFORE = HostState(
    scope=SCOPE,
    machine={"board": "b", "boot": "1", "command line": "quiet", "kernel": "6"},
    packages={"acl": "1", "sudo": "2"},
    files={"/etc": FOLDER, "/etc/a": FILE, "/usr/bin/su": NOTED, "/var/lib/x": FOLDER, "/etc/link": LINK},
    units={"ssh.service": RUNNING, "cron.service": RUNNING, "off.service": STOPPED},
    sysctls={"vm/swappiness": "60\n"},
    modules=frozenset({"kvm"}),
    links={"eth0": "52 hardware"},
    mounts=frozenset({"/"}),
    rules=TABLE,
)


def _changed(field: str, change: dict[str, Any]) -> HostState:
    told = {name: item for name, item in {**getattr(BEFORE, field), **change}.items() if item is not None}
    return replace(BEFORE, **{field: told})


def _one(now: HostState) -> Difference:
    (found,) = differences(BEFORE, now)
    return found


def test_a_host_that_has_not_changed_has_no_difference() -> None:
    assert differences(BEFORE, BEFORE) == []


@pytest.mark.parametrize(
    ("field", "change", "step"),
    [
        ("packages", {"tcpdump": "4"}, Step.PURGE),
        ("packages", {"acl": None}, Step.INSTALL),
        ("packages", {"acl": "9"}, None),
        ("packages", {"linux-image-6.12-amd64": "6"}, None),
        ("files", {"/etc/a": replace(FILE, digest="e" * 64)}, Step.WRITE),
        ("files", {"/etc/a": replace(FILE, time=6)}, Step.WRITE),
        ("files", {"/etc/a": None}, Step.WRITE),
        ("files", {"/etc/link": FILE}, Step.WRITE),
        ("files", {"/etc/new": FILE}, Step.DELETE),
        ("files", {"/usr/sbin/guard-neighbours": NOTED}, Step.DELETE),
        ("files", {"/var/lib/testbed": FOLDER}, Step.DELETE),
        ("files", {"/var/lib/mysql": FOLDER}, None),
        ("files", {"/home/colleague": FOLDER}, None),
        ("files", {"/boot/vmlinuz-7": NOTED}, None),
        ("files", {"/usr/bin/su": replace(NOTED, mode="755")}, Step.MODE),
        ("files", {"/usr/bin/su": replace(NOTED, size=4)}, None),
        ("files", {"/usr/bin/su": None}, None),
        ("files", {"/var/lib/x": replace(FOLDER, mode="751")}, Step.MODE),
        ("units", {"cron.service": STOPPED}, Step.START),
        ("units", {"cron.service": None}, Step.START),
        ("units", {"new.service": RUNNING}, Step.STOP),
        ("units", {"off.service": Unit("failed", "failed", "2")}, "none"),
        ("units", {"off.service": Unit("activating", "start", "2")}, "none"),
        ("units", {"sshd.service": RUNNING}, None),
        ("units", {"user@1000.service": RUNNING}, "none"),
        ("sysctls", {"vm/swappiness": "10\n"}, Step.SET),
        ("sysctls", {"net/netfilter/nf_conntrack_max": "1\n"}, "none"),
        ("links", {"ovs-system": "3a virtual"}, Step.REMOVE),
        ("links", {"vnet7": "fe virtual"}, "none"),
        ("links", {"eth0": None}, None),
        ("machine", {"command line": "quiet iommu=pt"}, None),
    ],
)
def test_each_difference_has_its_step(field: str, change: dict[str, Any], step: Step | str | None) -> None:
    if step == "none":
        assert differences(BEFORE, _changed(field, change)) == []
        return
    found = _one(_changed(field, change))
    assert found.step == step
    assert bool(found.reason) == (step is None)


def test_a_record_is_compared_by_its_own_scope() -> None:
    narrow = replace(BEFORE, scope=replace(SCOPE, copied=("/root/.ssh",), noted=()))
    (found,) = differences(narrow, _changed("files", {"/etc/new": FILE}))
    assert found.step is None


def test_modules_and_tables_are_compared() -> None:
    assert _one(replace(BEFORE, modules=frozenset())).step is Step.LOAD
    assert _one(replace(BEFORE, modules=frozenset({"kvm", "tun"}))).step is Step.UNLOAD
    assert _one(replace(BEFORE, rules="")).step is Step.LOAD
    assert _one(replace(BEFORE, rules=TABLE + "table inet testbed {\n}\n")).step is Step.REMOVE
    assert differences(BEFORE, replace(BEFORE, rules=TABLE + "table ip docker {\n}\n")) == []


def test_tables_keep_their_text() -> None:
    other = "table ip6 nat { # by another tool\n\tset a {\n\t}\n}\n"
    assert tables(TABLE + other) == {"inet host": TABLE, "ip6 nat { # by another tool": other}


def test_orders_hold_what_was_recorded() -> None:
    now = replace(
        BEFORE,
        packages={"sudo": "2", "tcpdump": "4"},
        files={
            "/etc": FOLDER,
            "/etc/new": FILE,
            "/usr/bin/su": replace(NOTED, mode="755"),
            "/var/lib/x": FOLDER,
        },
        sysctls={"vm/swappiness": "10\n"},
        rules="table inet testbed {\n}\n",
    )
    made = orders(BEFORE, now, differences(BEFORE, now), ["ssh.service"])
    ours = orders(
        BEFORE,
        _changed("files", {"/home/admin": FOLDER}),
        differences(BEFORE, _changed("files", {"/home/admin": FOLDER})),
        [],
    )
    assert (ours.trees, ours.delete) == (["/home/admin"], [])
    assert (made.purge, made.install, made.delete) == (["tcpdump"], ["acl=1"], ["/etc/new"])
    assert [(item["path"], item["whole"]) for item in made.write] == [
        ("/etc/a", True),
        ("/etc/link", True),
        ("/usr/bin/su", False),
    ]
    assert made.write[0]["digest"] == FILE.digest
    assert made.write[2]["mode"] == "644"
    assert made.sysctls == {"vm/swappiness": "60\n"}
    assert made.tables == TABLE + "delete table inet testbed\n"
    assert made.restart == ["ssh.service"]


def test_units_that_read_other_files_start_again_once() -> None:
    again = Unit("active", "running", "2")
    now = _changed("units", {"ssh.service": again, "new.service": again, "cron.service": STOPPED})
    assert restarted(BEFORE, now, {}) == ["ssh.service"]
    assert restarted(BEFORE, now, {"ssh.service": "2"}) == []
    assert restarted(BEFORE, replace(now, machine={**BEFORE.machine, "boot": "2"}), {}) == []


def test_another_host_is_seen() -> None:
    assert same_host(BEFORE, BEFORE)
    assert not same_host(BEFORE, _changed("machine", {"board": "c"}))
    assert not same_host(BEFORE, _changed("links", {"eth0": "53 hardware"}))
    unknown = _changed("machine", {"board": "00000000-0000-0000-0000-000000000000"})
    assert same_host(unknown, unknown)
    assert same_host(BEFORE, _changed("links", {"eth0": None, "eno1": "52 hardware"}))
