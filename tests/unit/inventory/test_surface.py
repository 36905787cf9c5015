"""The attack surface of machines: what belongs to it, how it is named, and its baseline (PRO-01)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from docs.tools.catalogue import controls
from testbed.inventory.records import Inventory
from testbed.inventory.surface import (
    KINDS,
    LISTENER,
    PRIVILEGED,
    PROCESS,
    Accepted,
    Part,
    baseline,
    gone,
    grown,
    parsers,
    surface,
)
from testbed.model.resolve import resolve
from testbed.model.topology import FIRST_WORKER_UID, Plane, Role
from testbed.topology_file.loader import load, read

ROOT = Path(__file__).parents[3]
TOPOLOGY = resolve(read(ROOT / "topologies/two-tenants.yaml").spec)
NODE = next(item for item in TOPOLOGY.machines if item.role is Role.NODE)
ROOT_PROCESS = {"uids": "0 0 0 0", "effective": "000001ffffffffff", "profile": "unconfined", "seccomp": "0"}
FULL = "account 0; capabilities: all; profile: unconfined"
SSHD = Accepted(Part(LISTENER, "tcp MANAGEMENT:22", "/usr/sbin/sshd"), "the entrance", ("ACC-02",))


def _surface(*records: tuple[str, str, Any]) -> set[Part]:
    return surface(Inventory({(domain, key): value for domain, key, value in records}), TOPOLOGY, NODE)


@pytest.mark.parametrize(
    ("key", "by", "part"),
    [
        (
            f"first tcp {NODE.address(Plane.MANAGEMENT)}:22",
            ["/system.slice/ssh.service /usr/sbin/sshd"],
            SSHD.part,
        ),
        (
            f"first tcp {NODE.address(Plane.STORAGE)}:22",
            ["/system.slice/ssh.service /usr/sbin/sshd"],
            Part(LISTENER, "tcp STORAGE:22", "/usr/sbin/sshd"),
        ),
        (
            "of stranger tcp 0.0.0.0:80",
            ["/a.service /usr/bin/a", "/b.service /usr/bin/b", "/c.service /usr/bin/a"],
            Part(LISTENER, "of stranger tcp 0.0.0.0:80", "/usr/bin/a, /usr/bin/b"),
        ),
        (
            "first unix stream /run/libvirt/qemu/channel/12-red.web/org.qemu.guest_agent.0",
            ["/x /usr/bin/qemu-system-x86_64"],
            Part(
                LISTENER,
                "unix stream /run/libvirt/qemu/channel/N-GUEST/org.qemu.guest_agent.0",
                "/usr/bin/qemu-system-x86_64",
            ),
        ),
        (
            "first unix stream /var/lib/libvirt/qemu/domain-3-red.web/monitor.sock",
            [],
            Part(
                LISTENER,
                "unix stream /var/lib/libvirt/qemu/domain-N-GUEST/monitor.sock",
                "nothing that is known",
            ),
        ),
        (
            "first unix stream /run/a.1234.ctl",
            ["the kernel"],
            Part(LISTENER, "unix stream /run/a.N.ctl", "kernel"),
        ),
    ],
)
def test_a_listener_has_the_same_name_on_every_machine(key: str, by: list[str], part: Part) -> None:
    assert _surface(("listener", key, {"account": "0", "by": by})) == {part}


def test_names_of_guests_are_replaced_as_whole_words_only() -> None:
    key = "first unix stream /run/{}"
    names = {
        part.name
        for part in _surface(*(("listener", key.format(name), {}) for name in ("red.webs", "a.red.web")))
    }
    assert names == {"unix stream /run/red.webs", "unix stream /run/a.red.web"}


def test_the_longest_name_of_a_guest_is_replaced() -> None:
    text = (
        "version: 1\nname: x\nnodes: {node: {}}\n"
        "tenants: {red: {networks: {app: 10.0.0.0/24}, guests: {web: {}, web-1: {}}}}\n"
    )
    lab = resolve(load(text, "x.yaml", machine_memory=None).spec)
    found = surface(Inventory({("listener", "first unix stream /run/red.web-1"): {}}), lab, lab.nodes[0])
    assert {part.name for part in found} == {"unix stream /run/GUEST"}


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ({"mode": "4755", "owner": "0:0"}, "mode 4755, owner 0:0"),
        ({"mode": "2755", "owner": "0:42"}, "mode 2755, owner 0:42"),
        (
            {"mode": "0755", "owner": "0:0", "attributes": {"security.capability": "01"}},
            "mode 0755, owner 0:0, security.capability 01",
        ),
        ({"mode": "0755", "owner": "0:0", "attributes": {"user.note": "01"}}, None),
        ({"mode": "4755", "owner": "0:0", "type": "folder"}, None),
    ],
)
def test_files_that_give_rights_belong_to_it(value: dict[str, Any], detail: str | None) -> None:
    found = _surface(("file", "/usr/bin/x", {"type": "file", **value}))
    assert found == ({Part(PRIVILEGED, "/usr/bin/x", detail)} if detail else set())


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({}, FULL),
        ({"seccomp": "2", "no new privileges": "1"}, f"{FULL}; filtered system calls; no new privileges"),
        ({"effective": "0"}, "account 0; capabilities: none; profile: unconfined"),
        (
            {"effective": "0000000000003000"},
            "account 0; capabilities: net_admin net_raw; profile: unconfined",
        ),
        (
            {"effective": "000001ffffffefff"},
            "account 0; capabilities: all but net_admin; profile: unconfined",
        ),
        ({"effective": "0000020000000000"}, "account 0; capabilities: number 41; profile: unconfined"),
        ({"uids": "998 0 998 998"}, "account 0 998; capabilities: all; profile: unconfined"),
        (
            {"uids": f"{FIRST_WORKER_UID + 7} " * 4},
            "account a worker's; capabilities: all; profile: unconfined",
        ),
        ({"uids": f"{FIRST_WORKER_UID + 64} " * 4}, f"account {FIRST_WORKER_UID + 64}; {FULL[11:]}"),
        (
            {"profile": "libvirt-c9a48c5c-8ad3-5771-a9ec-8f2c2616fa53 (enforce)"},
            "account 0; capabilities: all; profile: libvirt-GUEST (enforce)",
        ),
    ],
)
def test_what_a_process_may_do_is_said_in_words(change: dict[str, str], detail: str) -> None:
    assert _surface(("process", "/a.service /usr/bin/a", {**ROOT_PROCESS, **change})) == {
        Part(PROCESS, "/a.service /usr/bin/a", detail)
    }


def test_workers_of_all_guests_have_one_name() -> None:
    keys = [
        rf"/machine.slice/machine-qemu\x2dN\x2d{name}.scope /usr/bin/qemu" for name in ("red.web", "blue.db")
    ]
    found = _surface(*(("process", key, ROOT_PROCESS) for key in keys))
    assert {part.name for part in found} == {r"/machine.slice/machine-qemu\x2dN\x2dGUEST.scope /usr/bin/qemu"}


def test_other_domains_and_odd_values_do_not_belong_to_it() -> None:
    assert (
        _surface(("unit", "a.service", {"by": []}), ("listener", "tcp", "odd"), ("process", "x", None))
        == set()
    )


def test_a_part_that_the_baseline_lacks_is_named_with_what_it_has_instead() -> None:
    other = Part(LISTENER, "tcp MANAGEMENT:22", "/tmp/sshd")
    new = Part(PRIVILEGED, "/usr/bin/x", "mode 4755, owner 0:0")
    assert grown({SSHD.part}, [SSHD]) == []
    assert grown({SSHD.part, other, new}, [SSHD]) == [
        "listener tcp MANAGEMENT:22: /tmp/sshd; the baseline has: /usr/sbin/sshd",
        "privileged file /usr/bin/x: mode 4755, owner 0:0; the baseline has no such part",
    ]


def test_a_part_that_is_no_longer_there_is_no_growth() -> None:
    assert (grown(set(), [SSHD]), gone(set(), [SSHD])) == ([], ["listener tcp MANAGEMENT:22"])
    assert gone({SSHD.part}, [SSHD]) == []


def test_every_part_of_the_baseline_is_watched_by_a_control_that_exists() -> None:
    known = controls((ROOT / "docs/controls.md").read_text())
    every = [item for parts in baseline().values() for item in parts]
    assert {*baseline()} == {*Role}
    assert {item.part.kind for item in every} == {*KINDS}
    assert {name for item in (*every, *parsers()) for name in item.controls} <= known.keys()
    assert all(item.controls for item in parsers())


@pytest.mark.parametrize(
    "change",
    [
        'kind = "odd"',
        'reason = ""',
        "controls = []",
        'more = "x"',
        'names = ["a", "a"]',
    ],
)
def test_a_baseline_that_is_not_well_formed_is_refused(change: str, tmp_path: Path) -> None:
    fields = {
        "roles": '["node"]',
        "kind": '"listener"',
        "names": '["a"]',
        "detail": '"d"',
        "reason": '"r"',
        "controls": '["ACC-02"]',
    }
    file = tmp_path / "surface.toml"

    def write(entries: dict[str, str]) -> None:
        file.write_text("[[part]]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items()))

    write(fields)
    assert [item.part.name for item in baseline(file)["node"]] == ["a"]
    name, _, value = change.partition(" = ")
    write({**fields, name: value})
    with pytest.raises(ValueError, match=r"other fields|twice"):
        baseline(file)
