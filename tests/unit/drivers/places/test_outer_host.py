"""The outer machine starts machines from saved memory.

Where that does not work, it boots them and reports the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.cli import up
from testbed.data_files import topologies
from testbed.drivers.host.accounts import Account
from testbed.drivers.host.content_store import file_digest
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Domain
from testbed.drivers.images.cache import Image
from testbed.drivers.places import outer_host
from testbed.drivers.places.outer_host import OuterHost
from testbed.drivers.snapshots import machine_memory
from testbed.drivers.snapshots.capture import AWAKE
from testbed.drivers.snapshots.machine_memory import MemorySnapshot
from testbed.errors import InstrumentError, ProvisioningError
from testbed.lab.build_inputs import BuildInputs
from testbed.model.resolve import resolve
from testbed.plan.diff import Action, Verb, data_of, diff
from testbed.plan.libvirt_xml.machine import Hardware, interface_xml, machine_xml, read_mark
from testbed.plan.resources import OUTER, Key, Kind, desired
from testbed.topology_file.loader import read
from tests.sim.simulator import INPUTS

LAB = resolve(read(topologies() / "one-node.yaml").spec)
NODE = LAB.nodes[0]
KEY = Key(OUTER, Kind.MACHINE, NODE.name)


class Libvirt:
    """Records its calls; a resumed machine reports that it is awake, unless a fault is set."""

    def __init__(self, folder: Path) -> None:
        self.console = folder / f"m/{NODE.name}/console.log"
        self.did: list[str] = []
        self.broken = ""
        self.xml = ""

    def create(self, xml: str, *, paused: bool = False) -> None:
        self.did.append("wait for memory" if paused else "boot")
        self.xml = xml

    def monitor(self, _: str) -> Libvirt:
        return self

    def load_memory(self, file: Path, _: float) -> None:
        self.did.append(f"load {file.read_text()}")
        if self.broken == "memory":
            raise ProvisioningError(
                "a virtual machine's memory cannot be moved", fact="QEMU says: failed", remedy="none"
            )

    def attach(self, _: str, device: str) -> None:
        self.did.append("plug")
        if self.broken == "machine":
            raise InstrumentError("node does not run", fact="no such domain", remedy="none")
        self.xml = self.xml.replace("</devices>", f"{device}</devices>")

    def resume(self, _: str) -> None:
        self.did.append("resume")
        text = "testbed: failed: no credential" if self.broken == "identity" else AWAKE
        self.console.write_text(f"{text}\n")

    def runs(self, _: str) -> bool:
        return True

    def destroy(self, _: str) -> None:
        self.did.append("destroy")

    def owned(self, _: str) -> Iterator[tuple[Domain, str, dict[str, object]]]:
        mark = read_mark(self.xml)
        assert mark is not None
        yield Domain("one-node.node", NODE.uuid, "paused", self.xml), mark[1], mark[2]


class Fabric:
    """The lab's networks, which do nothing here."""

    def links(self) -> list[object]:
        return []


@pytest.fixture
def libvirt(tmp_path: Path) -> Libvirt:
    return Libvirt(tmp_path / "state/one-node")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def saved(tmp_path: Path) -> MemorySnapshot:
    folder = tmp_path / "golden"
    folder.mkdir()
    for name in ("memory", "vda.qcow2", "golden.json"):
        (folder / name).write_text(name)
    return MemorySnapshot(
        "node",
        "k",
        folder,
        "today",
        {},
        {name: file_digest(folder / name) for name in ("memory", "vda.qcow2")},
    )


@pytest.fixture
def outside(libvirt: Any, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OuterHost:
    for module in (machine_memory, outer_host):
        monkeypatch.setattr(module, "make_overlay", lambda _, overlay: overlay)
    monkeypatch.setattr(Account, "give", lambda *_: None)
    workspace = Workspace(tmp_path / "state", LAB.name)
    workspace.create()
    workspace.make(workspace.machine(NODE.name))
    images = {name: Image(name, "k", tmp_path / name, {}, "") for name in ("node", "guest", "controller")}
    fabric: Any = Fabric()
    return OuterHost(LAB, workspace, INPUTS.environment, images, libvirt, fabric, told.append, memories={})


def _start(place: OuterHost, memory: MemorySnapshot | str | None) -> None:
    if memory is not None:
        place.memories[Hardware.of(NODE, INPUTS.environment)] = memory  # type: ignore[index]
    place.perform(Action(Verb.CREATE, KEY, "it does not exist", desired(LAB, INPUTS)[KEY], ()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_a_machine_starts_from_belongs_to_no_emulator(outside: OuterHost, saved: MemorySnapshot) -> None:
    for path in saved.folder.iterdir():
        os.chown(path, 4711, 4711)
    _start(outside, saved)
    assert {path.stat().st_uid for path in saved.folder.iterdir()} == {0}


def test_a_machine_starts_from_saved_memory(
    outside: OuterHost, libvirt: Libvirt, told: list[str], saved: MemorySnapshot
) -> None:
    _start(outside, saved)
    assert libvirt.did == ["destroy", "wait for memory", "load memory", "plug", "plug", "plug", "resume"]
    assert told == []
    assert "systemd.machine_id=" in libvirt.xml
    assert "testbed.golden" not in libvirt.xml


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("memory", "QEMU says: failed"),
        ("machine", "node does not run"),
        ("identity", "it has failed; its console ends with: testbed: failed: no credential"),
        ("file", "SHA-256"),
    ],
)
def test_one_that_does_not_wake_boots_and_the_reason_is_told(
    outside: OuterHost, libvirt: Libvirt, told: list[str], saved: MemorySnapshot, broken: str, reason: str
) -> None:
    libvirt.broken = broken
    if broken == "file":
        saved.memory.write_text("something else")
    _start(outside, saved)
    assert libvirt.did[-2:] == ["destroy", "boot"]
    (line,) = told
    assert line.startswith("node boots instead of starting from saved memory: ")
    assert reason in line


@pytest.mark.parametrize(
    "reason", ["the saved node cannot be used: its accelerator is kvm, and tcg is needed", None]
)
def test_one_without_saved_memory_boots(
    outside: OuterHost, libvirt: Libvirt, told: list[str], reason: str | None
) -> None:
    _start(outside, reason)
    assert libvirt.did == ["destroy", "boot"]
    assert [line.partition(": ")[2] for line in told] == ([reason] if reason else [])


@pytest.mark.parametrize(("plugged", "verb"), [(0, Verb.REPLACE), (2, Verb.REPLACE), (3, Verb.RESUME)])
def test_a_start_that_was_cut_short_begins_anew(
    outside: OuterHost, libvirt: Libvirt, plugged: int, verb: Verb
) -> None:
    """A killed command leaves a paused machine, which is started again from the beginning.

    Without all of its interfaces it would never be reached.
    """
    wanted = desired(LAB, INPUTS)[KEY]
    files = outer_host.MachineFiles("kernel", "initrd", ("vda",), "identity", "console")
    libvirt.create(
        machine_xml(LAB, NODE, INPUTS.environment, files, wanted.properties, generation="a-uuid"), paused=True
    )
    for nic in NODE.nics[:plugged]:
        libvirt.attach("one-node.node", interface_xml(nic))
    (action,) = diff({KEY: wanted}, outside.observe()).actions
    assert action.verb is verb


def test_a_machine_is_rebuilt_once_and_its_data_are_told(
    outside: OuterHost, libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the topology says: an intruder may have left anything on it."""
    resources = desired(LAB, INPUTS)
    files = outer_host.MachineFiles("kernel", "initrd", ("vda",), "identity", "console")
    libvirt.create(
        machine_xml(LAB, NODE, INPUTS.environment, files, resources[KEY].properties, generation="a-uuid"),
        paused=False,
    )
    for nic in NODE.nics[:3]:
        libvirt.attach("one-node.node", interface_xml(nic))
    outside.rebuild.add(NODE.name)
    (action,) = diff({KEY: resources[KEY]}, outside.observe(), held=data_of(resources)).actions
    assert (action.verb, action.reason) == (Verb.REPLACE, "state: found 'to be rebuilt', wanted 'running'")
    assert {"root disk of red/web", "volume data of red/web"} <= {*action.loses}
    monkeypatch.setattr(OuterHost, "_start", lambda *_: None)
    outside.perform(action)
    assert outside.rebuild == set()


def test_machines_that_another_libvirt_runs_boot_and_that_is_told(
    told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path, LAB.name)
    workspace.create()
    workspace.connect("qemu:///system")
    monkeypatch.setattr(up, "say", told.append)
    inputs = BuildInputs({}, INPUTS.environment)
    assert up._shortened(inputs, LAB, workspace, save=True) is inputs
    (line,) = told
    assert "qemu:///system runs them" in line
