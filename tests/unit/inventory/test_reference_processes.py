"""Processes are judged: what is not the image's, a service's or a worker's is a finding."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.inventory.records import Inventory
from testbed.inventory.reference import expected
from testbed.inventory.reference.derive import Origin, derived
from testbed.inventory.reference.judge import AWAKE, judge
from testbed.inventory.reference.processes import ORDINARY, peculiar
from testbed.model.resolve import resolve
from testbed.plan.host_config.identity import identity_files, pack
from testbed.topology_file.loader import read
from tests.unit.inventory.test_reference import AWAKE_FILE, KEY, KEYS, ROOT

TOPOLOGY = resolve(read(ROOT / "topologies/two-tenants.yaml").spec)
NODE = TOPOLOGY.nodes[0]
GUEST = next(guest for guest in TOPOLOGY.guests if guest.node == NODE.name)
LIBVIRTD = "/system.slice/libvirtd.service /usr/sbin/libvirtd"
ORDINARY_LIBVIRTD = {
    **ORDINARY,
    "arguments": "/usr/sbin/libvirtd",
    "profile": "libvirtd (enforce)",
    "files": ["/dev/null"],
}


def _worker(**other: Any) -> tuple[str, dict[str, Any]]:
    scope = GUEST.domain.replace("-", "\\x2d")
    group = f"/machine.slice/machine-qemu\\x2dN\\x2d{scope}.scope/libvirt/emulator"
    account = " ".join([str(GUEST.uid)] * 4)
    return f"{group} /usr/bin/qemu-system-x86_64", {
        **ORDINARY,
        "arguments": f"/usr/bin/qemu-system-x86_64 -name guest={GUEST.domain},debug-threads=on -S -m 224",
        "uids": account,
        "gids": account,
        "groups": f"993 {GUEST.uid}",
        "permitted": "0000000000000000",
        "effective": "0000000000000000",
        "no new privileges": "1",
        "seccomp": "2",
        "profile": f"libvirt-{GUEST.uuid} (enforce)",
        "namespaces": {"mnt": f"mnt of {group[1:]}"},
        **other,
    }


def _findings(found: dict[str, Any], golden: dict[str, Any] | None = None) -> list[str]:
    """Return what is found on a node with these processes, by the list that is really used."""
    origin = Origin(TOPOLOGY, NODE, pack(identity_files(TOPOLOGY, NODE, KEYS)), KEY)
    lines = expected.load(expected.words_of(TOPOLOGY, NODE))
    known = {("process", key): value for key, value in (golden or {}).items()}
    seen = {("process", key): value for key, value in found.items()}
    clean = {**derived(origin, {}, {}), AWAKE: AWAKE_FILE}
    judged = judge(origin, Inventory({**clean, **seen}), Inventory({AWAKE: AWAKE_FILE, **known}), lines, ())
    return [str(finding) for finding in judged.comparison.findings]


def test_services_and_workers_are_expected() -> None:
    key, worker = _worker()
    assert _findings({LIBVIRTD: ORDINARY_LIBVIRTD, key: worker}) == []


@pytest.mark.parametrize("name", sorted(ORDINARY))
def test_each_property_of_a_service_is_judged(name: str) -> None:
    (finding,) = _findings({LIBVIRTD: {**ORDINARY_LIBVIRTD, name: "another"}})
    assert LIBVIRTD in finding


@pytest.mark.parametrize("name", sorted(ORDINARY))
def test_each_property_of_a_worker_is_judged(name: str) -> None:
    key, worker = _worker(**{name: "another"})
    (finding,) = _findings({key: worker})
    assert "endangers PRC-01" in finding


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("/system.slice/ssh.service /usr/bin/python3.13", "python3 -c import"),  # a program of the image
        ("/system.slice/libvirtd.service /usr/bin/sleep", "sleep 9"),
        (LIBVIRTD, "/usr/sbin/libvirtd --listen"),
        (f"{LIBVIRTD} #2", "/usr/sbin/libvirtd --config /run/x"),
        (_worker()[0], "/usr/bin/qemu-system-x86_64 -name guest=another,debug-threads=on -S"),
    ],
)
def test_a_program_that_the_lab_does_not_start_is_a_finding(key: str, arguments: str) -> None:
    assert len(_findings({LIBVIRTD: ORDINARY_LIBVIRTD, key: {**ORDINARY, "arguments": arguments}})) >= 1


def test_a_process_of_the_golden_reading_may_end_and_does_not_change() -> None:
    auditd = "/system.slice/auditd.service /usr/sbin/auditd"
    value = {**ORDINARY, "arguments": "/usr/sbin/auditd", "seccomp": "2"}
    assert _findings({auditd: value}, {auditd: value}) == []
    assert _findings({}, {auditd: value}) == []  # its unit is a record that says so
    (changed,) = _findings({auditd: {**value, "seccomp": "0"}}, {auditd: value})
    assert "seccomp" in changed
    assert "endangers AUD-01" in changed


def test_key_exchange_has_given_up_the_rights_that_it_does_not_need() -> None:
    key = "/system.slice/strongswan.service /usr/sbin/charon-systemd"
    rights = dict.fromkeys(("permitted", "effective", "inheritable"), "00000000000030c2")
    process = {**ORDINARY, "arguments": "/usr/sbin/charon-systemd", **rights}
    assert _findings({key: process}) == []
    assert len(_findings({key: {**process, "effective": "000001ffffffffff"}})) == 1


def test_equal_processes_are_one_record_and_others_are_numbered() -> None:
    one = {**ORDINARY, "arguments": "/sbin/x", "files": ["/a"]}
    found = peculiar({"/x /sbin/x": one, "/x /sbin/x #2": {**one, "files": ["/b"]}})
    assert found == {"/x /sbin/x: /sbin/x": {}}
    found = peculiar({"/x /sbin/x": one, "/x /sbin/x #2": {**one, "uids": "7 7 7 7"}})
    assert sorted(map(str, found.values())) == ["{'uids': '7 7 7 7'}", "{}"]
    assert sorted(found) == ["/x /sbin/x: /sbin/x", "/x /sbin/x: /sbin/x #2"]


def test_a_value_that_is_no_object_is_judged_too() -> None:
    assert peculiar({"/x y": ["hostile"]}) == {"/x y": ["hostile"]}
    assert len(_findings({"/x y": ["hostile"]})) == 1
