"""Puts a lab together: drivers built from a topology, inside the lab's namespaces."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import quote

from testbed import data_files as packaged
from testbed.drivers.capabilities import canary
from testbed.drivers.host.accounts import privileged
from testbed.drivers.host.ownership import require_trust
from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.workspace import Workspace, cache_root
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.hypervisor.external_daemon import Outside, require
from testbed.drivers.images.cache import Image, ImageCache
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.network.bridges import Fabric
from testbed.drivers.pki import Authority
from testbed.drivers.places.controller import Central, write_client
from testbed.drivers.places.node import Node
from testbed.drivers.places.outer_host import Outer, destroy_machines
from testbed.drivers.snapshots.checkpoint import Checkpoint
from testbed.drivers.snapshots.machine_memory import Saved, Store
from testbed.drivers.ssh.client import Host
from testbed.engine.place import Place, Progress
from testbed.errors import TestbedError, UsageError
from testbed.lab import admin_login
from testbed.model.environment import Accelerator, Environment
from testbed.model.resolve import resolve
from testbed.model.topology import Testbed
from testbed.plan.libvirt_xml.machine import Hardware
from testbed.plan.resources import Inputs, Key, Resource, desired
from testbed.topology_file.loader import read


@dataclass(frozen=True, slots=True)
class Ground:
    """What a lab stands on: images, what the outer machine can do, and what there is of saved memory."""

    images: dict[str, Image]
    environment: Environment
    memories: Mapping[Hardware, Saved | str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    @property
    def inputs(self) -> Inputs:
        """What the desired state depends on besides the topology."""
        return Inputs(self.environment, {name: image.digest for name, image in self.images.items()})


def prepare(progress: Progress, *, want: Accelerator | None = None) -> Ground:
    """Bake what is missing, and find out how virtual machines run here.

    Raises:
        ImageError: an image could not be baked.
        MachineError: this machine cannot run the lab.

    """
    cache = ImageCache(cache_root(), packaged.playbooks())
    return _ground(cache.ensure(progress), want)


def ground(*, want: Accelerator | None = None) -> Ground:
    """Return what is there already, for commands that look at a lab and build nothing.

    Raises:
        ImageError: an image is missing.
        MachineError: this machine cannot run the lab.

    """
    return _ground(ImageCache(cache_root(), packaged.playbooks()).baked(), want)


def _ground(images: dict[str, Image], want: Accelerator | None) -> Ground:
    require_trust(cache_root(), shared=True)
    return Ground(images, canary.environment(images["node"], cache_root(), want=want))


def remember(ground: Ground, testbed: Testbed, progress: Progress, *, save: bool) -> Ground:
    """Return the same ground with the saved memory that a lab's machines can start from.

    Args:
        save: boot and save machines of which no memory fits; if that fails, or is not wanted, they have none.

    """
    store = Store(cache_root(), ground.images, ground.environment)
    wanted = [Hardware.of(machine, ground.environment) for machine in testbed.machines]
    if save:
        try:
            store.ensure(wanted, progress)
        except TestbedError as error:
            progress(f"machines boot: {error.what}: {error.fact}")
    return replace(ground, memories={hardware: store.find(hardware) for hardware in wanted})


@dataclass
class Lab:
    """A lab with everything that acts on it. Only usable inside its enclosure.

    Args:
        closed: breaches that another process had left open, and that this one has closed.

    """

    testbed: Testbed
    workspace: Workspace
    ground: Ground
    outer: Outer
    central: Central
    nodes: dict[str, Node]
    closed: list[str] = field(default_factory=list)

    @property
    def places(self) -> list[Place]:
        """Every place, the outer machine first."""
        return [self.outer, self.central, *self.nodes.values()]

    @property
    def desired(self) -> dict[Key, Resource]:
        """Every resource that must exist."""
        return desired(self.testbed, self.ground.inputs)

    @property
    def retried(self) -> tuple[str, ...]:
        """Guests whose first start was dead, in this process."""
        return tuple(label for node in self.nodes.values() for label in node.retried)

    @property
    def hosts(self) -> list[Host]:
        """The connection of every machine."""
        return [self.central.host, *(node.host for node in self.nodes.values())]

    def host(self, name: str) -> Host:
        """Return the connection of a machine.

        Raises:
            UsageError: there is no such machine.

        """
        require_member("machine", name, [machine.name for machine in self.testbed.machines])
        return self.central.host if name == self.central.name else self.nodes[name].host

    def log_out(self) -> None:
        """End every connection to the lab's machines; what is asked next opens one anew."""
        self.central.close()
        for node in self.nodes.values():
            node.close()

    def close(self) -> None:
        """End every connection; the lab runs on."""
        self.log_out()
        self.outer.hypervisor.close()


def destroy(workspace: Workspace) -> None:
    """Take a lab down: its machines, its namespaces and its files; the reports of its runs stay.

    Raises:
        ProvisioningError: libvirt refuses.
        MachineError: the lab's holder does not end.
        UsageError: something in the lab's folder is not ours; nothing has been done then.

    """
    workspace.require_removable()
    if workspace.connection:
        hypervisor = Hypervisor(f"qemu+unix:///system?socket={quote(str(require(workspace.connection)))}")
        destroy_machines(hypervisor, workspace.lab)
        hypervisor.close()
    found = lab_namespaces.find(workspace.lab, workspace.root)
    if found is not None:
        lab_namespaces.destroy(found)
    workspace.remove()


def require_member(kind: str, name: str, known: Sequence[str]) -> None:
    """Refuse a name that a lab does not have.

    Raises:
        UsageError: the name is not among the known ones; the error lists them.

    """
    if name not in known:
        fact = f"the lab has: {', '.join(known)}"
        raise UsageError(f"there is no {kind} {name}", fact=fact, remedy="name one of these")


def load_applied(workspace: Workspace) -> Testbed:
    """Return the topology that was applied last.

    Raises:
        UsageError: there is no such lab.

    """
    if not workspace.topology.exists():
        fact = f"{workspace.folder} has no topology"
        raise UsageError(
            f"there is no lab {workspace.lab}",
            fact=fact,
            remedy="run `testbed up TOPOLOGY`, or `testbed status`",
        )
    return resolve(read(workspace.topology).spec)


def enter(testbed: Testbed, workspace: Workspace, environment: Environment) -> Outside | None:
    """Continue inside the lab's enclosure, which is made if it is missing; see
    `testbed.drivers.namespaces.lab_namespaces`.

    Returns:
        What was taken along, if a libvirt daemon of the outer machine runs the lab's machines.

    Raises:
        MachineError: this machine does not permit it.

    """
    workspace.create()
    found = lab_namespaces.find(testbed.name, workspace.root)
    outside = Outside.take(workspace.connection, fresh=found is None) if workspace.connection else None
    if found is None:
        group = f":{workspace.account.gid}" if privileged() else ""
        devices = (f"kvm{group}",) if environment.outer is Accelerator.KVM else ()
        found = lab_namespaces.create(
            testbed.name, workspace.root, devices=devices, python=sys.executable, log=workspace.log
        )
    lab_namespaces.enter(found)
    return outside


@contextmanager
def opened(
    testbed: Testbed,
    workspace: Workspace,
    ground: Ground,
    outside: Outside | None = None,
    *,
    progress: Progress = lambda _: None,
) -> Iterator[Lab]:
    """Build the drivers of a lab; call inside its enclosure.

    Args:
        outside: what `enter` returned.
        progress: is told of machines that boot although they should have started from saved memory.

    Raises:
        ProvisioningError: the outer hypervisor cannot be opened.

    """
    authority = Authority(workspace.pki)
    admin_login.renew(workspace, authority)
    client = authority.administrator("testbed", start=authority.born, now=datetime.now(UTC))
    write_client(workspace, client.private_key, client.certificate)
    if not outside:
        workspace.account.admit(workspace.folder)
    hypervisor = (
        Hypervisor(outside.uri) if outside else Hypervisor.embed(workspace.libvirt, workspace.account)
    )
    if outside and outside.fresh:
        destroy_machines(hypervisor, testbed.name)
    fabric = Fabric(testbed.name)
    outer = Outer(
        testbed,
        workspace,
        ground.environment,
        ground.images,
        hypervisor,
        fabric,
        progress,
        outside,
        ground.memories,
        ground.checkpoint,
    )
    central = Central(
        testbed,
        workspace,
        Host(admin_login.access(workspace, testbed.controller)),
        ground.environment.slowness,
    )
    nodes = {
        node.name: Node(
            testbed,
            node,
            Host(admin_login.access(workspace, node)),
            workspace.machine(node.name) / "libvirt.sock",
            ground.environment,
        )
        for node in testbed.nodes
    }
    for machine in testbed.machines:
        workspace.make(workspace.machine(machine.name))
    admin_login.write_config(testbed, workspace, authority)
    lab = Lab(testbed, workspace, ground, outer, central, nodes)
    try:
        yield lab
    finally:
        lab.close()


def apply_copy(text: str, workspace: Workspace) -> None:
    """Remember the topology that is being applied, so that every other command knows it by the lab's name.

    Args:
        text: as it was read; a pipe can be read once only.

    """
    write_secret(workspace.topology, text.encode())
