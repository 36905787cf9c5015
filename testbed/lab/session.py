"""Opens a lab: builds its drivers from a topology, inside the lab's namespaces."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote

from testbed.drivers.host.accounts import privileged
from testbed.drivers.host.folders import within_namespaces
from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.workspace import Workspace, labs
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.hypervisor.external_daemon import Outside, require
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.network.bridges import Fabric
from testbed.drivers.pki import Authority
from testbed.drivers.places.controller import Controller, write_client
from testbed.drivers.places.node import Node
from testbed.drivers.places.outer_host import OuterHost, destroy_machines
from testbed.drivers.places.volume_keys import VolumeKeys
from testbed.drivers.snapshots.checkpoint import read_numbers
from testbed.drivers.ssh.client import Host
from testbed.engine.place import Place, Progress
from testbed.errors import UsageError
from testbed.lab import admin_login
from testbed.lab.build_inputs import BuildInputs
from testbed.model.environment import Accelerator, Environment
from testbed.model.numbers import Numbers
from testbed.model.resolve import resolve
from testbed.model.topology import Machine, Topology
from testbed.plan.resources import Key, Resource, desired
from testbed.topology_file.loader import read

_SESSION_ENDS = 3.0  # seconds in which a machine has noticed that a client is gone


@dataclass
class Lab:
    """A lab with its places; it can be used only inside its enclosure.

    Args:
        closed: breaches that another process had left open and this one has closed.

    """

    topology: Topology
    workspace: Workspace
    inputs: BuildInputs
    outer: OuterHost
    central: Controller
    nodes: dict[str, Node]
    closed: list[str] = field(default_factory=list)

    @property
    def places(self) -> list[Place]:
        """All places, the outer machine first."""
        return [self.outer, self.central, *self.nodes.values()]

    @property
    def desired(self) -> dict[Key, Resource]:
        """All resources that must exist."""
        return desired(self.topology, self.inputs.plan_inputs)

    @property
    def retried(self) -> tuple[str, ...]:
        """Labels of guests whose first start failed, in this process."""
        return tuple(label for node in self.nodes.values() for label in node.retried)

    @property
    def hosts(self) -> list[Host]:
        """The ssh connections to all machines."""
        return [self.central.host, *(node.host for node in self.nodes.values())]

    def host(self, name: str) -> Host:
        """Return the ssh connection to a machine.

        Raises:
            UsageError: there is no such machine.

        """
        require_member("machine", name, [machine.name for machine in self.topology.machines])
        return self.central.host if name == self.central.name else self.nodes[name].host

    @contextmanager
    def guests_paused(self) -> Iterator[None]:
        """Pause the guests of all nodes for a block, which begins without a login on any machine.

        Raises:
            InstrumentError, ProvisioningError: a node's libvirt cannot be asked, or refuses; guests that stay
                paused are drift, which `up` repairs.

        """
        with ExitStack() as resumed:
            for node in self.nodes.values():
                resumed.callback(node.resume_guests)
                node.pause_guests()
            self.log_out()
            # What is in memory goes on later: a session would wait for its client until sshd asks for it.
            time.sleep(_SESSION_ENDS)
            yield

    def log_out(self) -> None:
        """Close all connections to the lab's machines; they are opened again on the next use."""
        self.central.close()
        for node in self.nodes.values():
            node.close()

    def close(self) -> None:
        """Close all connections; the lab continues to run."""
        self.log_out()
        self.outer.hypervisor.close()


def destroy(workspace: Workspace) -> None:
    """Take a lab down: its machines, namespaces and files, but not the reports of its runs.

    Raises:
        ProvisioningError: libvirt refuses.
        MachineError: the lab's holder does not end.
        UsageError: something in the lab's folder is not ours; nothing has been changed.

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


def load_applied(workspace: Workspace) -> Topology:
    """Return the topology that was applied last.

    Raises:
        UsageError: there is no such lab.

    """
    if not workspace.topology_file.exists():
        fact = f"{workspace.folder} has no topology"
        raise UsageError(
            f"there is no lab {workspace.lab}",
            fact=fact,
            remedy="run `testbed up TOPOLOGY`, or `testbed status`",
        )
    return resolve(read(workspace.topology_file).spec, given_numbers(workspace))


def given_numbers(workspace: Workspace) -> Numbers:
    """Return the numbers that a lab has given to its names; none without such a lab.

    Raises:
        ProvisioningError: they cannot be read.

    """
    if workspace.lab not in labs(workspace.root):
        return Numbers()
    return read_numbers(workspace.numbers, f"run `testbed down {workspace.lab}`, then `testbed up`")


def remember_numbers(workspace: Workspace, numbers: Numbers) -> None:
    """Write down the numbers that a lab has given to its names."""
    write_secret(workspace.numbers, numbers.text().encode())


def enter(topology: Topology, workspace: Workspace, environment: Environment) -> Outside | None:
    """Continue inside the lab's enclosure, which is made if it is missing.

    `testbed.drivers.namespaces.lab_namespaces` describes how.

    Returns:
        Access to the libvirt daemon of the outer machine, if that runs the lab's machines.

    Raises:
        MachineError: this machine does not permit namespaces.

    """
    workspace.create()
    found = lab_namespaces.find(topology.name, workspace.root)
    outside = Outside.take(workspace.connection, fresh=found is None) if workspace.connection else None
    if found is None:
        group = f":{workspace.account.gid}" if privileged() else ""
        devices = (f"kvm{group}",) if environment.outer is Accelerator.KVM else ()
        found = lab_namespaces.create(
            topology.name, workspace.root, devices=devices, python=sys.executable, log=workspace.log
        )
    lab_namespaces.enter(found)
    return outside


@contextmanager
def open_lab(
    topology: Topology,
    workspace: Workspace,
    inputs: BuildInputs,
    outside: Outside | None = None,
    *,
    progress: Progress = lambda _: None,
) -> Iterator[Lab]:
    """Build the drivers of a lab and close them after the block; call it inside the enclosure.

    Args:
        topology: topology of the lab.
        workspace: folder of the lab.
        inputs: images, environment and saved memory of the lab.
        outside: result of `enter`.
        progress: receives a line for each machine that boots instead of starting from saved memory.

    Raises:
        ProvisioningError: the outer hypervisor cannot be opened.

    """
    authority = Authority(workspace.pki)
    admin_login.renew(workspace, authority)
    client = authority.administrator("testbed", start=authority.not_before, now=datetime.now(UTC))
    write_client(workspace, client.private_key, client.certificate)
    if not outside:
        workspace.account.admit(workspace.folder)
    hypervisor = (
        Hypervisor(outside.uri)
        if outside
        else Hypervisor.embed(within_namespaces(workspace.libvirt, workspace.folder), workspace.account)
    )
    if outside and outside.fresh:
        destroy_machines(hypervisor, topology.name)
    fabric = Fabric(topology.name)
    outer = OuterHost(
        topology,
        workspace,
        inputs.environment,
        inputs.images,
        hypervisor,
        fabric,
        progress,
        outside,
        inputs.memories,
        inputs.checkpoint,
    )

    def host(machine: Machine) -> Host:
        return Host(admin_login.access(workspace, machine), partial(outer.boot_progress, machine))

    central = Controller(
        topology,
        workspace,
        host(topology.controller),
        inputs.environment.slowness,
    )
    keys = VolumeKeys(workspace.pki)
    nodes = {
        node.name: Node(
            topology,
            node,
            host(node),
            workspace.machine(node.name) / "libvirt.sock",
            inputs.environment,
            keys,
            workspace.images,
        )
        for node in topology.nodes
    }
    lab = Lab(topology, workspace, inputs, outer, central, nodes)
    try:
        yield lab
    finally:
        lab.close()


def settle(topology: Topology, workspace: Workspace) -> None:
    """Make the folders of a lab's machines, and the configuration for OpenSSH's client."""
    for machine in topology.machines:
        workspace.make(workspace.machine(machine.name))
    admin_login.write_config(topology, workspace, Authority(workspace.pki))


def apply_copy(text: str, workspace: Workspace) -> None:
    """Copy the applied topology into the lab's folder, where other commands find it.

    Args:
        text: the topology as it was read; a pipe can be read only once.

    """
    write_secret(workspace.topology_file, text.encode())
