"""Guests that start from saved memory: libvirt's input, and how guests handle messages."""

from __future__ import annotations

import base64
import importlib.util
import struct
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from testbed.data_files import playbooks
from testbed.drivers.places.guest_start import GuestStarter
from testbed.drivers.snapshots import guest_memory
from testbed.drivers.ssh.client import Host
from testbed.errors import ProvisioningError
from testbed.model.resolve import resolve
from testbed.plan.libvirt_xml.guest import SAVED_VOLUME, anonymous_guest_xml, guest_xml, is_usual
from testbed.plan.libvirt_xml.machine import GUEST_TO_SAVE, waits
from testbed.topology_file.loader import read

LAB = resolve(read(Path(__file__).parents[4] / "topologies/two-tenants.yaml").spec)
GUEST = LAB.guests[0]
FORM = 7


def _header(version: int = 2, form: int = FORM) -> bytes:
    return struct.pack("=16s5I56x", b"LibvirtQemudSave", version, 1234, 1, form, 999)


def _host(answer: bytes) -> Host:
    return cast(Host, SimpleNamespace(sudo=lambda _: SimpleNamespace(stdout=answer)))


def test_a_file_begins_with_the_tenants_own_domain() -> None:
    domain = guest_xml(LAB, GUEST, {}, waiting=True)
    head = guest_memory.memory_header(_header(), domain)
    magic, version, length, ran, form, cookie = struct.unpack_from("=16s5I", head)
    assert (magic, version, ran, form, cookie) == (b"LibvirtQemudSave", 2, 0, FORM, 0)
    assert head[92 : 92 + length] == domain.encode() + b"\0"
    assert len(head) == 92 + length


@pytest.mark.parametrize("answer", [b"", b"cat: no such file", _header(version=9), _header()[:-1]])
def test_where_no_memory_is_kept_that_we_know_guests_boot(answer: bytes) -> None:
    assert guest_memory.saved_header(_host(answer)) == b""
    assert guest_memory.saved_header(_host(_header(version=3))) == _header(version=3)


def test_the_saved_guest_has_the_hardware_of_a_usual_one() -> None:
    """Only its files, connections, identity, confinement and limits differ."""
    assert is_usual(GUEST)
    saved, own = (ET.fromstring(text) for text in (anonymous_guest_xml(), guest_xml(LAB, GUEST, {})))
    for root in (saved, own):
        for tag in ("name", "uuid", "metadata", "seclabel", "os/cmdline", "memtune", "cputune"):
            for element in root.findall(tag):
                root.remove(element) if element in list(root) else root.find("os").remove(element)  # type: ignore[union-attr]
        for path in (
            "devices/disk/source",
            "devices/disk/iotune",
            "devices/interface/source",
            "devices/interface/target",
            "devices/interface/mac",
            "devices/interface/virtualport",
            "devices/serial/log",
        ):
            parent, _, tag = path.rpartition("/")
            for holder in root.findall(parent):
                for element in holder.findall(tag):
                    holder.remove(element)
        for interface in root.findall("devices/interface"):
            interface.set("type", "")
    texts = [ET.canonicalize(ET.tostring(root, encoding="unicode"), strip_text=True) for root in (saved, own)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "other",
    [
        replace(GUEST, memory=2 * GUEST.memory),
        replace(GUEST, vcpus=2),
        replace(GUEST, nics=GUEST.nics * 2),
        replace(GUEST, volumes=()),
    ],
)
def test_a_guest_with_other_hardware_boots(other: Any) -> None:
    assert not is_usual(other)


def test_the_size_of_a_volume_makes_no_difference() -> None:
    assert is_usual(replace(GUEST, volumes=(replace(GUEST.volumes[0], size=2 * SAVED_VOLUME),)))


def test_who_starts_from_memory_waits_until_its_title_is_gone() -> None:
    assert waits(guest_xml(LAB, GUEST, {}, waiting=True))
    assert not waits(guest_xml(LAB, GUEST, {}))


def test_who_saves_a_guest_means_the_same_numbers_as_who_starts_one() -> None:
    program = (playbooks() / "roles/hypervisor/files/before-saving").read_text()
    assert f"truncate -s {SAVED_VOLUME // 2**20}M " in program
    assert f"saved.read({guest_memory._HEADER})" in program
    assert f"by_name/{GUEST_TO_SAVE}/raw" in program
    assert f"FOLDER={guest_memory._SAVED}\n" in program


@pytest.mark.parametrize(
    "answer", [{}, {"host-name": "anonymous"}, {"host-name": None}, {"value": GUEST.name}]
)
def test_a_guest_that_does_not_take_its_identity_is_an_error(answer: dict[str, object]) -> None:
    with pytest.raises(ProvisioningError, match="does not take its identity"):
        guest_memory.require_identity(lambda *_: answer, GUEST)
    guest_memory.require_identity(lambda *_: {"host-name": GUEST.name}, GUEST)


def test_a_guest_is_told_by_its_agent_at_the_pipe_where_it_waits() -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def ask(command: str, arguments: dict[str, object], _: int) -> dict[str, object]:
        asked.append((command, arguments))
        return {"value": 1000}

    guest_memory.send_identity(ask, GUEST)
    program = (playbooks() / "roles/guest/files/wake").read_text()
    assert asked[0] == ("guest-file-open", {"path": "/run/wake", "mode": "w"})
    assert 'REQUEST, WAITING = "/run/wake", "/run/waiting"' in program
    assert '"path": "/run/waiting"' in (playbooks() / "roles/hypervisor/files/before-saving").read_text()
    assert asked[1][1]["handle"] == 1000
    assert base64.b64decode(str(asked[1][1]["buf-b64"])).decode().startswith(f"{GUEST.name}\n")
    assert asked[2] == ("guest-file-close", {"handle": 1000})


@pytest.fixture
def wake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    loader = SourceFileLoader("wake", str(playbooks() / "roles/guest/files/wake"))
    spec = importlib.util.spec_from_loader("wake", loader)
    assert spec is not None
    module: Any = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    module.did = []
    monkeypatch.setattr(module, "reseed", lambda fresh: module.did.append(("reseed", len(fresh))))
    monkeypatch.setattr(module.time, "clock_settime_ns", lambda _, now: module.did.append(("clock", now)))
    monkeypatch.setattr(module, "write", lambda path, text: module.did.append((path, text)))
    monkeypatch.setattr(module, "take_macs", lambda macs: module.did.append(("macs", macs)))
    monkeypatch.setattr(module.os, "execv", lambda path, argv: module.did.append((path, argv)))
    return module  # type: ignore[no-any-return]


def test_a_guest_does_what_it_is_told_and_draws_nothing_before_it_has_been_reseeded(
    wake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nic = GUEST.nics[0]
    six = replace(nic, mac="0a:00:00:00:00:02", address6=nic.address6 or LAB)  # type: ignore[arg-type]
    wake.become(guest_memory.identity_of(replace(GUEST, nics=(nic, six))).decode())
    assert [name for name, _ in wake.did] == [
        "reseed",
        "clock",
        "/etc/machine-id",
        "/run/boot_id",
        "macs",
        "/usr/bin/busybox",
    ]
    did = dict(wake.did)
    assert did["reseed"] == 128
    assert did["/etc/machine-id"] == f"{GUEST.uuid.replace('-', '')}\n"
    assert uuid.UUID(did["/run/boot_id"].strip()).version == 4
    assert did["macs"] == [nic.mac, "0a:00:00:00:00:02"]
    assert did["/usr/bin/busybox"][-2:] == [GUEST.name, "0a:00:00:00:00:02"]


def test_a_guest_that_waits_reads_what_comes_through_its_pipe_and_leaves_nothing(
    wake: Any, tmp_path: Path
) -> None:
    wake.REQUEST, wake.WAITING = str(tmp_path / "wake"), str(tmp_path / "waiting")
    wake.write = lambda path, text: Path(path).write_text(text)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(wake.wait)
        while not Path(wake.WAITING).exists():
            time.sleep(0.01)
        Path(wake.REQUEST).write_text("name\nid\n")
        assert told.result(5) == "name\nid\n"
    assert list(tmp_path.iterdir()) == []


def test_no_two_guests_are_told_the_same_random_bytes() -> None:
    assert len({guest_memory.identity_of(GUEST).splitlines()[3] for _ in range(3)}) == 3


class Puppet:
    """A hypervisor that does everything at once, or fails at one step."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.did = fails, list[str]()

    def __getattr__(self, name: str) -> Any:
        def do(*arguments: object, **_: object) -> dict[str, Any]:
            self.did.append(f"agent {arguments[1]}" if name == "agent" else name)
            if self.fails == self.did[-1]:
                self.fails = ""
                raise ProvisioningError("no", fact="-", remedy="-")
            own = [{"ip-address": "10.0.0.9", "ip-address-type": "ipv4"}]
            found = [{"hardware-address": nic.mac, "ip-addresses": own} for nic in GUEST.nics]
            return {"value": found, "host-name": GUEST.name}

        return do


def _started(hypervisor: Puppet, *, blank: bool, kept: bytes) -> tuple[list[str], list[str]]:
    renewed: list[str] = []
    host: Any = SimpleNamespace(sudo=lambda _: SimpleNamespace(stdout=kept), must=lambda *_, **__: "")
    starter = GuestStarter(
        LAB, host, lambda: cast(Any, hypervisor), lambda guest: renewed.append(guest.label), 1.0
    )
    starter.start(GUEST, {}, blank=blank and starter.keeps(GUEST))
    return starter.retried, renewed


def test_a_guest_that_has_never_run_goes_on_from_memory() -> None:
    hypervisor = Puppet()
    assert _started(hypervisor, blank=True, kept=_header()) == ([], [])
    assert hypervisor.did[:3] == ["restore", "resume", "wait_for_agent"]
    assert "create" not in hypervisor.did
    assert hypervisor.did[-2:] == ["agent guest-get-host-name", "entitle"]


@pytest.mark.parametrize(("blank", "kept"), [(False, _header()), (True, b"")])
def test_a_guest_that_has_run_or_finds_no_memory_boots(blank: bool, kept: bytes) -> None:
    hypervisor = Puppet()
    assert _started(hypervisor, blank=blank, kept=kept) == ([], [])
    assert hypervisor.did[:2] == ["create", "resume"]
    assert "restore" not in hypervisor.did


@pytest.mark.parametrize("step", ["restore", "resume", "agent guest-file-open", "agent guest-get-host-name"])
def test_a_guest_that_does_not_wake_boots_from_a_new_disk_and_is_counted(step: str) -> None:
    hypervisor = Puppet(fails=step)
    assert _started(hypervisor, blank=True, kept=_header()) == ([GUEST.label], [GUEST.label])
    assert "create" in hypervisor.did[hypervisor.did.index("destroy") :]
