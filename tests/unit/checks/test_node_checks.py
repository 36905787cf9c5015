"""Checks of one node (PRC-01, PRC-02, CMP-02, DEV-02, ACC-05): missing output is no pass."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_compute, test_management_access
from checks.test_compute import _Identity, _mixed
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.resolve import resolve
from testbed.model.topology import Guest
from testbed.plan.host_config.settings import SOCKETS
from testbed.topology_file.loader import read
from testbed.verify.attackers.worker import processes
from testbed.verify.cleanup import Leavings
from testbed.verify.witnesses import confinement, libvirt_conf

LAB = resolve(read(Path(__file__).parents[3] / "topologies/one-node.yaml").spec)
KVM = 104


def _own(number: int, *others: int, group: int = 0) -> _Identity:
    return _Identity(frozenset({number}), frozenset({group or number}), frozenset(others))


def test_workers_with_accounts_and_groups_of_their_own_are_apart() -> None:
    found = {"red.web": _own(64100, 64100, KVM), "red.db": _own(64101, KVM), "blue.web": _own(64102)}
    assert _mixed(found, {"red.web": 64100, "red.db": 64101, "blue.web": 64102}, KVM) == []


@pytest.mark.parametrize(
    "other",
    [
        _own(64100),
        _own(64101, group=64100),
        _own(64101, 64100),
        _own(64101, 6),
        _own(64101, group=104),
        _own(0),
        _Identity(frozenset({64101, 0}), frozenset({64101}), frozenset()),
        _Identity(frozenset({64101}), frozenset({64101, 0}), frozenset()),
        _own(64109),
    ],
)
def test_every_account_and_group_counts(other: _Identity) -> None:
    """Primary and further groups count, and so does an account other than the topology's."""
    assert _mixed({"red.web": _own(64100, KVM), "red.db": other}, {"red.web": 64100, "red.db": 64101}, KVM)


def test_a_worker_that_no_topology_knows_shares_no_account() -> None:
    """Nothing says which account it must have, so it is compared with all others."""
    known, wanted = {"red.web": _own(64100, KVM)}, {"red.web": 64100}
    assert _mixed({**known, "blue.a.lodger": _own(64109, KVM)}, wanted, KVM) == []
    for name in ("blue.a.lodger", "z.lodger"):
        (told,) = _mixed({**known, name: _own(64100, KVM)}, wanted, KVM)
        assert "share account [64100]" in told


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("security_require_confined = 1", [1]),
        ("# security_require_confined = 1", []),
        ("#security_require_confined = 1\nsecurity_require_confined = 0", [0]),
        ("a = 1 # security_require_confined = 1", []),
        ("a = [ 'b', # security_require_confined = 1\n\"c\" ]", []),
        ('a = """\nsecurity_require_confined = 1\n"""', []),
        ("security_require_confined=1\nsecurity_require_confined = 0", [1, 0]),
        ("security_require_confined = 10", [10]),
        ('security_require_confined = "1"', ["1"]),
    ],
)
def test_only_what_libvirt_takes_for_a_setting_is_one(text: str, values: list[object]) -> None:
    assert libvirt_conf.read(text).get("security_require_confined", []) == values


@pytest.mark.parametrize(
    "text", ["a", "a =", "a = b", "= 1", "a = [ 'b'", "a = [ 1 ]", "a = 'b", "$", "a 1", "1 = 1"]
)
def test_what_libvirt_would_not_take_is_no_setting(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read|is no|has no end"):
        libvirt_conf.read(text)


class _Node:
    """A node with fixed output, by parts of the commands."""

    name = "node"

    def __init__(self, **told: str) -> None:
        self.told = told

    def read(self, command: str, **_: object) -> str:
        text = next((text for part, text in self.told.items() if part in command), None)
        if text is None:
            raise InstrumentError("no", fact=command, remedy="-")
        return text


_CONF = (Path(__file__).parents[3] / "playbooks/roles/hypervisor/files/qemu.conf").read_text()


def test_our_own_file_confines_every_guest() -> None:
    assert confinement.unconfigured(_Node(**{"qemu.conf": _CONF})) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("security_require_confined = 1", "#security_require_confined = 1\nsecurity_require_confined = 0"),
        ("security_require_confined = 1", "# security_require_confined = 1"),
        ("security_require_confined = 1", "security_require_confined = 1\nsecurity_require_confined = 0"),
        ('security_driver = [ "apparmor" ]', 'security_driver = "none"'),
        ("security_default_confined = 1", "security_default_confined = 0"),
    ],
)
def test_a_comment_confines_nobody(old: str, new: str) -> None:
    assert old in _CONF
    assert confinement.unconfigured(_Node(**{"qemu.conf": _CONF.replace(old, new)}))  # type: ignore[arg-type]


class _Hypervisor:
    """Refuses domains with a given message, and records those that run."""

    def __init__(self, refusal: str = "") -> None:
        self.refusal, self.running, self.made = refusal, set[str](), list[str]()

    def create(self, xml: str, *, paused: bool) -> None:
        assert paused
        self.made.append(xml)
        if self.refusal:
            raise ProvisioningError("cannot start", fact=self.refusal, remedy="-")
        found = re.search("<name>(.*)</name>", xml)
        assert found
        self.running.add(found[1])

    def destroy(self, name: str) -> None:
        self.running.discard(name)


def _fleet(hypervisor: _Hypervisor | None = None, machine: Any = None, ran: list[str] | None = None) -> Any:
    host = SimpleNamespace(must=(ran if ran is not None else []).append)
    node = SimpleNamespace(topology=LAB, hypervisor=hypervisor, host=host)
    return SimpleNamespace(
        topology=LAB,
        lab=SimpleNamespace(nodes={"node": node}),
        leavings=Leavings(),
        machines={"node": machine},
    )


def test_libvirt_is_asked_for_a_guest_without_a_profile() -> None:
    """A guest that starts is removed afterwards; a refusal for another reason is no answer."""
    taking, ran = _Hypervisor(), list[str]()
    assert confinement.starts_unconfined(_fleet(taking, ran=ran), LAB.guests[0])
    assert not taking.running
    assert ran == [f"rm -f /var/log/libvirt/qemu/{LAB.guests[0].tenant}.un.confined.log*"]
    assert '<seclabel type="none" model="apparmor"' in taking.made[0]
    assert "<source file" not in taking.made[0]
    assert "dynamic" not in taking.made[0]
    refusing = _Hypervisor(
        "libvirt says: unsupported configuration: Unconfined guests are not allowed on this host"
    )
    assert not confinement.starts_unconfined(_fleet(refusing), LAB.guests[0])
    with pytest.raises(InstrumentError, match="does not tell"):
        confinement.starts_unconfined(_fleet(_Hypervisor("libvirt says: out of memory")), LAB.guests[0])


def test_a_worker_whose_process_cannot_be_told_is_missed() -> None:
    node: Any = _Node(**{"*.pid": "red.web 12\nred.db 13"})
    assert processes(node, LAB.guests) == {"red.web": 12, "red.db": 13}
    for text in ("", "red.web 12\nred.db", "red.web 12\nred.db x", "red.web 12\nred.db 13 14"):
        node.told["*.pid"] = text
        with pytest.raises(InstrumentError):
            processes(node, LAB.guests)


def test_memory_that_is_not_told_is_not_apart() -> None:
    """An empty list of areas is no list; every running worker is checked, declared or not."""
    told = {
        "*.pid": "red.web 12\nred.x.y 13",
        "ksm/run": "0 0 0",
        "/proc/12/smaps": "500 0",
        "/proc/13/smaps": "400 0",
    }
    node: Any = _Node(**told)
    test_compute.test_no_page_is_shared(fleet=_fleet(), node=node)
    node.told["/proc/13/smaps"] = "400 1"
    with pytest.raises(AssertionError, match=r"1 of 400 memory areas of red\.x\.y"):
        test_compute.test_no_page_is_shared(fleet=_fleet(), node=node)
    node.told["/proc/13/smaps"] = "0 0"
    with pytest.raises(InstrumentError):
        test_compute.test_no_page_is_shared(fleet=_fleet(), node=node)


def test_areas_are_counted_as_the_kernel_tells_them(tmp_path: Path) -> None:
    (tmp_path / "smaps").write_text("VmFlags: rd wr mr mg ac \nSize: 4 kB\nVmFlags: rd mgx ac\nVmFlags: mg\n")
    command = test_compute._COUNT_AREAS.format("P").replace("/proc/P", str(tmp_path))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "3 2\n"


_LISTENERS = 'LISTEN 0 128 198.18.0.11:22 0.0.0.0:* users:(("sshd",pid=1,fd=3))'


class _Tried:
    """A node that answers for all workers with fixed results: by label, path and result."""

    def __init__(self, labels: list[str], **other: Any) -> None:
        self.labels, self.other, self.name, self.listeners = labels, other, "node", _LISTENERS
        self.workers = {guest.domain: 10 + number for number, guest in enumerate(LAB.guests)}

    def read(self, command: str) -> str:
        return (
            self.listeners
            if command.startswith("ss ")
            else "\n".join(f"{domain} {pid}" for domain, pid in self.workers.items())
        )

    def python(self, _: str, request: dict[str, Any]) -> list[object]:
        assert request == {"paths": SOCKETS, "workers": self.workers}
        return [
            [
                label,
                7,
                7,
                [7],
                self.other.get(
                    label, dict.fromkeys(SOCKETS, "open" if label.startswith("root") else "denied")
                ),
            ]
            for label in self.labels
        ]


def _labels(guests: tuple[Guest, ...] = LAB.guests) -> list[str]:
    accounts = ["account admin", "account nobody", "account daemon"]
    return [
        "root before",
        *accounts,
        *(f"account {guest.worker}" for guest in guests),
        *(f"worker of {guest.domain}" for guest in guests),
        "root after",
    ]


def _judge(node: _Tried) -> None:
    test_management_access.test_only_root_reaches_libvirt(fleet=_fleet(), node=node)  # type: ignore[arg-type]


def test_who_is_denied_everything_reaches_nothing() -> None:
    _judge(_Tried(_labels()))


@pytest.mark.parametrize("label", [*_labels()[1:-1]])
def test_every_account_must_be_denied(label: str) -> None:
    """Each socket must deny it; an accepted connection counts even if it is not served."""
    for path in SOCKETS:
        for word in ("open", "ECONNREFUSED", "timed out"):
            with pytest.raises(AssertionError, match=re.escape(f"{label} (uid 7): {path} ({word})")):
                _judge(_Tried(_labels(), **{label: {**dict.fromkeys(SOCKETS, "denied"), path: word}}))


@pytest.mark.parametrize("label", [label for label in _labels() if label != "account daemon"])
def test_nobody_is_left_out(label: str) -> None:
    """An account that did not try, or tried one socket less, makes it inconclusive."""
    short: dict[str, Any] = {label: dict.fromkeys(SOCKETS[1:], "denied")}
    for node in (
        _Tried([item for item in _labels() if item != label]),
        _Tried(_labels(), **short),
        _Tried(_labels(), **{label: {}}),
    ):
        with pytest.raises(InstrumentError, match="did not try every socket"):
            _judge(node)


def test_root_must_reach_it_before_and_after() -> None:
    for control in ("root before", "root after"):
        with pytest.raises(InstrumentError, match="root does not reach libvirt"):
            _judge(_Tried(_labels(), **{control: dict.fromkeys(SOCKETS, "ECONNREFUSED")}))


@pytest.mark.parametrize(
    "line",
    [
        'LISTEN 0 9 0.0.0.0:16509 0.0.0.0:* users:(("systemd",pid=1,fd=9))',
        'LISTEN 0 9 *:7 *:* users:(("virtqemud",pid=9,fd=9))',
    ],
)
def test_a_list_of_listeners_without_our_own_is_none(line: str) -> None:
    node = _Tried(_labels())
    node.listeners = f"{_LISTENERS}\n{line}"
    with pytest.raises(AssertionError, match="listens on a network"):
        _judge(node)
    node.listeners = ""
    with pytest.raises(InstrumentError, match="does not tell its listeners"):
        _judge(node)


@pytest.fixture
def tried() -> Iterator[Callable[[], dict[str, dict[str, str]]]]:
    """Run the program that tries sockets here, as root, on sockets of our own."""
    modes = {"shut": 0o600, "open": 0o666}
    with (
        tempfile.TemporaryDirectory() as name,
        socket.socket(socket.AF_UNIX) as shut,
        socket.socket(socket.AF_UNIX) as wide,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        for listener, (place, mode) in zip((shut, wide), modes.items(), strict=True):
            listener.bind(str(folder / place))
            listener.listen(200)
            (folder / place).chmod(mode)

        def run() -> dict[str, dict[str, str]]:
            request = {"paths": [str(folder / place) for place in modes], "workers": {"red.web": os.getpid()}}
            program = f"REQUEST = {request!r}\n{test_management_access._CONNECT}"
            done = subprocess.run(
                [sys.executable, "-"], input=program, capture_output=True, text=True, check=True
            )
            return {
                label: {Path(path).name: word for path, word in told.items()}
                for label, _, _, _, told in json.loads(done.stdout)
            }

        yield run


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_program_tries_as_who_it_says(tried: Callable[[], dict[str, dict[str, str]]]) -> None:
    """Root and a worker of root's reach both sockets, every other account the open one."""
    found = tried()
    assert (
        found["root before"]
        == found["root after"]
        == found["worker of red.web"]
        == {"shut": "open", "open": "open"}
    )
    others = {label: told for label, told in found.items() if label.startswith("account ")}
    assert "account nobody" in others
    assert len(others) > 5
    assert [told for told in others.values() if told != {"shut": "denied", "open": "open"}] == []
