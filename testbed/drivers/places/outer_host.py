"""The outer machine as a place: bridges, taps, and the virtual machines that stand in for hosts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Interface
from pathlib import Path
from uuid import uuid4

from testbed.drivers.host.content_store import take_back
from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Domain, Hypervisor
from testbed.drivers.hypervisor.external_daemon import Outside
from testbed.drivers.images.cache import Image
from testbed.drivers.network.bridges import Fabric
from testbed.drivers.network.rogue_host import ROGUE
from testbed.drivers.pki import Authority
from testbed.drivers.snapshots.capture import AWAKE, wait_for_line
from testbed.drivers.snapshots.checkpoint import Checkpoint, Kept
from testbed.drivers.snapshots.machine_memory import Saved, base_disks, images_under, make_overlay
from testbed.engine.place import Progress
from testbed.errors import ProvisioningError, TestbedError
from testbed.model.environment import Environment
from testbed.model.topology import Machine, Testbed
from testbed.plan.diff import Action, Verb
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

_WAKING = 15.0  # seconds for each step of starting from saved memory, stretched by slowness


@dataclass(frozen=True)
class Outer:
    """The outer machine, inside the lab's namespaces. What machines are made from is verified when the first
    one is.

    Args:
        progress: is told of machines that boot against expectation, with the reason.
        memories: what machines start from, or why there is nothing that they can start from; machines of
            other hardware boot.
        checkpoint: where machines go on, in a lab that is started as a whole.

    """

    lab: Testbed
    workspace: Workspace
    environment: Environment
    images: Mapping[str, Image]
    hypervisor: Hypervisor
    fabric: Fabric
    progress: Progress
    outside: Outside | None = None
    memories: Mapping[Hardware, Saved | str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    name: str = OUTER
    _verified: set[Path] = field(default_factory=set)
    _verifying: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """The outer machine is always there."""

    def recover(self) -> tuple[str, ...]:
        """Nothing: what the outer machine runs for the lab are resources."""
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
        for domain, machine, made in self.hypervisor.owned(self.lab.name):
            found[Key(OUTER, Kind.MACHINE, machine)] = {**made, "state": _state(domain, made)}  # type: ignore[dict-item]
        return found

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
            self.hypervisor.resume(self.lab.machine(name).domain(self.lab.name))
        else:
            self.hypervisor.destroy(self.lab.machine(name).domain(self.lab.name))
            self._start(self.lab.machine(name), action.resource.properties)

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
            destroy_machines(self.hypervisor, self.lab.name, key.name)
            return
        for link in self.fabric.links():
            if link.resource == f"{key.kind}={key.name}":
                self.fabric.delete(link.name)

    def _start(self, machine: Machine, properties: Properties) -> None:
        """Let a machine go on, or start it from saved memory, or boot it: whatever comes first and works."""
        for image in images_under(self.images, machine.role):
            self._verify(image)
        if self.checkpoint:
            try:
                self._continue(machine, self.checkpoint.machine(machine.name))
                return
            except TestbedError as error:
                self.hypervisor.destroy(machine.domain(self.lab.name))
                self.progress(
                    f"{machine.name} does not go on from {self.checkpoint.name}: {error.what}: {error.fact}"
                )
        self.issue_identity(machine, self.workspace.machine(machine.name))
        saved = self.memories.get(Hardware.of(machine, self.environment))
        if isinstance(saved, Saved):
            try:
                self._wake(machine, properties, saved)
                return
            except TestbedError as error:
                self.hypervisor.destroy(machine.domain(self.lab.name))
                saved = f"{error.what}: {error.fact}"
        if saved is not None:
            self.progress(f"{machine.name} boots instead of starting from saved memory: {saved}")
        files = self._files(machine, base_disks(self.images, machine.role))
        self.hypervisor.create(machine_xml(self.lab, machine, self.environment, files, properties))

    def _continue(self, machine: Machine, kept: Kept) -> None:
        """Let a machine of a checkpoint go on where it was saved.

        Raises:
            ProvisioningError: it is not what was saved, or does not start.

        """
        name = machine.domain(self.lab.name)
        kept.verify()
        kept.unpack(self.workspace.machine(machine.name), self.workspace.account)
        self.hypervisor.create(resumed_xml(kept.xml, str(uuid4())), paused=True)
        self.hypervisor.monitor(name).load_memory(kept.memory, _WAKING * self.environment.slowness)
        self.hypervisor.entitle(name, "")
        self.hypervisor.resume(name)

    def _files(self, machine: Machine, bases: Sequence[Path]) -> MachineFiles:
        """Make a machine's overlays and console anew, and return the paths of all its files."""
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
            str(identity),
            str(console),
            direct=self.outside is not None,
        )

    def _wake(self, machine: Machine, properties: Properties, saved: Saved) -> None:
        """Start a machine from saved memory, and return when it has taken its identity.

        Raises:
            ImageError: the saved memory is not what was saved.
            ProvisioningError: it does not start.

        """
        self._verify(saved)
        saved.use()
        files = self._files(machine, saved.disks)
        name, patience = machine.domain(self.lab.name), _WAKING * self.environment.slowness
        xml = machine_xml(self.lab, machine, self.environment, files, properties, generation=str(uuid4()))
        self.hypervisor.create(xml, paused=True)
        self.hypervisor.monitor(name).load_memory(saved.memory, patience)
        for nic in machine.nics:
            self.hypervisor.attach(name, interface_xml(nic))
        self.hypervisor.resume(name)
        wait_for_line(Path(files.console), AWAKE, patience, lambda: self.hypervisor.runs(name))

    def _verify(self, kept: Image | Saved) -> None:
        """Verify an image or a saved memory, unless that has been done."""
        with self._verifying:
            if kept.folder not in self._verified:
                take_back(kept.folder)
                kept.verify()
                self._verified.add(kept.folder)

    def issue_identity(self, machine: Machine, folder: Path) -> None:
        """Write a machine's identity archive, with fresh keys, and the host key we shall expect of it."""
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
        write_secret(folder / "identity.tar", pack(identity_files(self.lab, machine, keys)))
        write_secret(folder / "host_key.pub", host.public_key.encode())


def _state(domain: Domain, made: Mapping[str, object]) -> str:
    """Return a machine's state; one whose start from saved memory was cut short waits, or lacks interfaces,
    and nothing revives it.
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
    """Stop a lab's machine, or all of them; they are known by their mark.

    Raises:
        ProvisioningError: libvirt refuses.

    """
    for domain, found, _ in hypervisor.owned(lab):
        if name in ("", found):
            hypervisor.destroy(domain.name)
