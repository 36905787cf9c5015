"""The outer machine as a place: bridges, taps and the virtual machines of the lab."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Interface
from pathlib import Path
from uuid import uuid4

from testbed import timeouts
from testbed.drivers.host.console import console_progress
from testbed.drivers.host.content_store import take_back
from testbed.drivers.host.folders import within_namespaces
from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Domain, Hypervisor
from testbed.drivers.hypervisor.external_daemon import Outside
from testbed.drivers.images.cache import Image
from testbed.drivers.network.bridges import Fabric
from testbed.drivers.network.rogue_host import ROGUE
from testbed.drivers.pki import Authority
from testbed.drivers.snapshots.capture import AWAKE, wait_for_line
from testbed.drivers.snapshots.checkpoint import Checkpoint, CheckpointMachine
from testbed.drivers.snapshots.machine_memory import MemorySnapshot, base_disks, images_under, make_overlay
from testbed.engine.place import Progress
from testbed.errors import ProvisioningError, TestbedError
from testbed.model.environment import Environment
from testbed.model.topology import Machine, Topology
from testbed.plan.diff import REBUILD, Action, Verb
from testbed.plan.host_config.identity import MachineKeys, identity_files, pack
from testbed.plan.libvirt_xml.machine import (
    Hardware,
    MachineFiles,
    interface_count,
    interface_xml,
    machine_xml,
    resumed_xml,
    waits,
)
from testbed.plan.resources import OUTER, Key, Kind, Properties

_WAKING = timeouts.MEMORY_START


@dataclass(frozen=True)
class OuterHost:
    """The outer machine, inside the lab's namespaces.

    Images and saved memory are verified once, before the first machine starts from them.

    Args:
        progress: receives a line for each machine that cannot start as planned, with the reason.
        memories: saved memory by hardware, or the reason why there is none; machines of other hardware boot.
        checkpoint: checkpoint from which the whole lab starts, or None.
        rebuild: names of machines that are to be replaced whatever their state is.

    """

    topology: Topology
    workspace: Workspace
    environment: Environment
    images: Mapping[str, Image]
    hypervisor: Hypervisor
    fabric: Fabric
    progress: Progress
    outside: Outside | None = None
    memories: Mapping[Hardware, MemorySnapshot | str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    rebuild: set[str] = field(default_factory=set)
    name: str = OUTER
    _verified: set[Path] = field(default_factory=set)
    _verifying: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Do nothing: the outer machine always runs."""

    def recover(self) -> tuple[str, ...]:
        """Do nothing: bridges, taps and machines are resources, and plans repair them."""
        return ()

    def observe(self) -> dict[Key, Properties]:
        """Return the interfaces and machines that carry this lab's mark."""
        found: dict[Key, Properties] = {}
        for link in self.fabric.links():
            kind, _, name = link.resource.partition("=")
            if kind == ROGUE:
                continue
            properties: dict[str, str | int | list[str]] = {"interface": link.name, "bridge": link.master}
            if kind == Kind.NETWORK:
                properties = {"bridge": link.name, "address": " ".join(link.addresses)}
            found[Key(OUTER, Kind(kind), name)] = properties if link.up else {**properties, "link": "down"}
        for domain, machine, made in self.hypervisor.owned(self.topology.name):
            state = REBUILD if machine in self.rebuild else _state(domain, made)
            found[Key(OUTER, Kind.MACHINE, machine)] = {**made, "state": state}  # type: ignore[dict-item]
        return found

    def boot_progress(self, machine: Machine) -> str:
        """Return signs of progress of a machine's boot: reads of its disks, and its console."""
        reads = self.hypervisor.disk_reads(machine.domain(self.topology.name))
        console = console_progress(self.workspace.machine(machine.name) / "console.log")
        return "; ".join(filter(None, (reads, console)))

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        kind, name = action.key.kind, action.key.name
        if action.resource is None:
            self._remove(action.key)
        elif kind is Kind.NETWORK:
            self._bridge(action)
        elif kind is Kind.TAP:
            if action.verb is not Verb.CREATE:
                self.fabric.delete(str(action.resource.properties["interface"]))
            properties = action.resource.properties
            network = self.outside.network if self.outside else None
            self.fabric.create_tap(
                str(properties["interface"]), f"{kind}={name}", str(properties["bridge"]), network
            )
        elif action.verb is Verb.RESUME:
            self.hypervisor.resume(self.topology.machine(name).domain(self.topology.name))
        else:
            self.hypervisor.destroy(self.topology.machine(name).domain(self.topology.name))
            self.rebuild.discard(name)
            self._start(self.topology.machine(name), action.resource.properties)

    def _bridge(self, action: Action) -> None:
        assert action.resource is not None
        name, address = str(action.resource.properties["bridge"]), str(action.resource.properties["address"])
        if action.verb is not Verb.CREATE:
            fact, remedy = action.reason, "run `testbed down`, then `testbed up`"
            raise ProvisioningError(
                f"the bridge {name} cannot be changed under running machines", fact=fact, remedy=remedy
            )
        self.fabric.create_bridge(
            name, f"{action.key.kind}={action.key.name}", IPv4Interface(address) if address else None
        )

    def _remove(self, key: Key) -> None:
        if key.kind is Kind.MACHINE:
            destroy_machines(self.hypervisor, self.topology.name, key.name)
            return
        for link in self.fabric.links():
            if link.resource == f"{key.kind}={key.name}":
                self.fabric.delete(link.name)

    def _start(self, machine: Machine, properties: Properties) -> None:
        """Start a machine from the checkpoint, from saved memory or by a boot.

        The first way that is possible and works is used.
        """
        for image in images_under(self.images, machine.role):
            self._verify(image)
        if self.checkpoint:
            try:
                self._continue(machine, self.checkpoint.machine(machine.name))
                return
            except TestbedError as error:
                self.hypervisor.destroy(machine.domain(self.topology.name))
                self.progress(
                    f"{machine.name} does not go on from {self.checkpoint.name}: {error.what}: {error.fact}"
                )
        self.issue_identity(machine, self.workspace.machine(machine.name))
        saved = self.memories.get(Hardware.of(machine, self.environment))
        if isinstance(saved, MemorySnapshot):
            try:
                self._wake(machine, properties, saved)
                return
            except TestbedError as error:
                self.hypervisor.destroy(machine.domain(self.topology.name))
                saved = f"{error.what}: {error.fact}"
        if saved is not None:
            self.progress(f"{machine.name} boots instead of starting from saved memory: {saved}")
        files = self._files(machine, base_disks(self.images, machine.role))
        self.hypervisor.create(machine_xml(self.topology, machine, self.environment, files, properties))

    def _continue(self, machine: Machine, kept: CheckpointMachine) -> None:
        """Start a machine from its state in a checkpoint.

        Raises:
            ProvisioningError: a saved file has changed, or the machine does not start.

        """
        name = machine.domain(self.topology.name)
        kept.verify()
        kept.unpack(self.workspace.machine(machine.name), self.workspace.account)
        self.hypervisor.create(resumed_xml(kept.xml, str(uuid4())), paused=True)
        self.hypervisor.monitor(name).load_memory(kept.memory, _WAKING * self.environment.slowness)
        self.hypervisor.entitle(name, "")
        self.hypervisor.resume(name)

    def _files(self, machine: Machine, bases: Sequence[Path]) -> MachineFiles:
        """Make new overlays and a new console for a machine; return the paths of all its files."""
        folder, image = self.workspace.machine(machine.name), self.images[machine.role]
        overlays = [
            make_overlay(base, folder / f"vd{letter}.qcow2")
            for base, letter in zip(bases, "abc", strict=False)
        ]
        console, identity = folder / "console.log", folder / "identity.tar"
        write_secret(console, b"")
        for path in (*overlays, console, identity):
            self.workspace.account.give(path)
        kernel, initrd = str(image.file("vmlinuz")), str(image.file("initrd"))
        return MachineFiles(
            kernel,
            initrd,
            tuple(map(str, overlays)),
            str(identity if self.outside else within_namespaces(identity, self.workspace.folder)),
            str(console),
            direct=self.outside is not None,
        )

    def _wake(self, machine: Machine, properties: Properties, saved: MemorySnapshot) -> None:
        """Start a machine from saved memory and wait until it has applied its identity.

        Raises:
            ImageError: a saved file has changed.
            ProvisioningError: the machine does not start.

        """
        self._verify(saved)
        saved.use()
        files = self._files(machine, saved.disks)
        name, patience = machine.domain(self.topology.name), _WAKING * self.environment.slowness
        xml = machine_xml(
            self.topology, machine, self.environment, files, properties, generation=str(uuid4())
        )
        self.hypervisor.create(xml, paused=True)
        self.hypervisor.monitor(name).load_memory(saved.memory, patience)
        for nic in machine.nics:
            self.hypervisor.attach(name, interface_xml(nic))
        self.hypervisor.resume(name)
        wait_for_line(Path(files.console), AWAKE, patience, lambda: self.hypervisor.runs(name))

    def _verify(self, kept: Image | MemorySnapshot) -> None:
        """Verify an image or a saved memory, once in this process."""
        with self._verifying:
            if kept.folder not in self._verified:
                take_back(kept.folder)
                kept.verify()
                self._verified.add(kept.folder)

    def issue_identity(self, machine: Machine, folder: Path) -> None:
        """Write a machine's identity archive with new keys, and the host key that we will expect."""
        authority = Authority(self.workspace.pki)
        now = datetime.now(UTC)
        host = authority.host(machine.name, [nic.address for nic in machine.nics], now=now)
        tls = authority.tls(machine.name, now=now)
        keys = MachineKeys(
            host.private_key,
            host.certificate,
            authority.ssh_public_key,
            tls.private_key,
            tls.certificate,
            authority.tls_ca,
            authority.administrators_ca,
        )
        write_secret(folder / "identity.tar", pack(identity_files(self.topology, machine, keys)))
        write_secret(folder / "host_key.pub", host.public_key.encode())


def _state(domain: Domain, made: Mapping[str, object]) -> str:
    """Return a machine's state: libvirt's, or a state of an interrupted start.

    A machine whose start from saved memory was interrupted waits for its memory or lacks interfaces. It
    cannot be resumed.
    """
    if waits(domain.xml):
        return "waiting for its memory"
    wanted = made.get("interfaces")
    return (
        "unplugged"
        if isinstance(wanted, list) and interface_count(domain.xml) < len(wanted)
        else domain.state
    )


def destroy_machines(hypervisor: Hypervisor, lab: str, name: str = "") -> None:
    """Stop a lab's machines, found by their mark.

    Args:
        hypervisor: libvirt that runs them.
        lab: name of the lab.
        name: name of the one machine to stop; all by default.

    Raises:
        ProvisioningError: libvirt refuses.

    """
    for domain, found, _ in hypervisor.owned(lab):
        if name in ("", found):
            hypervisor.destroy(domain.name)
