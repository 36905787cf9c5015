"""The outer machine as a place: bridges, taps, and the virtual machines that stand in for hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Interface
from pathlib import Path

from testbed.drivers import process
from testbed.drivers.accounts import give_to_worker
from testbed.drivers.fabric import Fabric
from testbed.drivers.hypervisor import Hypervisor
from testbed.drivers.images import Image
from testbed.drivers.outside import Outside
from testbed.drivers.pki import Authority, write_secret
from testbed.drivers.rogue import ROGUE
from testbed.drivers.workspace import Workspace
from testbed.errors import ProvisioningError
from testbed.model.facts import Environment
from testbed.model.testbed import Machine, Role, Testbed
from testbed.plan.diff import Action, Verb
from testbed.plan.domains import MachineFiles, machine_xml
from testbed.plan.identity import MachineKeys, identity_files, pack
from testbed.plan.resources import OUTER, Key, Kind, Properties


@dataclass(frozen=True)
class Outer:
    """The outer machine, inside the lab's namespaces."""

    lab: Testbed
    workspace: Workspace
    environment: Environment
    images: Mapping[str, Image]
    hypervisor: Hypervisor
    fabric: Fabric
    outside: Outside | None = None
    name: str = OUTER

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
            found[Key(OUTER, Kind.MACHINE, machine)] = {**made, "state": domain.state}  # type: ignore[dict-item]
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
            self.fabric.create_tap(str(properties["interface"]), f"{kind}={name}", str(properties["bridge"]), network)
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
            raise ProvisioningError(f"the bridge {name} cannot be changed under running machines", fact=fact, remedy=remedy)
        self.fabric.create_bridge(name, f"{action.key.kind}={action.key.name}", IPv4Interface(address) if address else None)

    def _remove(self, key: Key) -> None:
        if key.kind is Kind.MACHINE:
            destroy_machines(self.hypervisor, self.lab.name, key.name)
            return
        for link in self.fabric.links():
            if link.resource == f"{key.kind}={key.name}":
                self.fabric.delete(link.name)

    def _start(self, machine: Machine, properties: Properties) -> None:
        folder = self.workspace.machine(machine.name)
        self.issue_identity(machine, folder)
        image = self.images[machine.role]
        disks = [image.file("disk.qcow2")]
        if machine.role is Role.NODE:
            disks += [self.images["guest"].file("volume.qcow2"), image.file("pool.qcow2")]
        overlays = [self.overlay(base, folder / f"vd{letter}.qcow2") for base, letter in zip(disks, "abc", strict=False)]
        console = folder / "console.log"
        console.write_bytes(b"")
        for path in (*overlays, console, folder / "identity.tar"):
            give_to_worker(path)
        files = MachineFiles(
            kernel=str(image.file("vmlinuz")),
            initrd=str(image.file("initrd")),
            disks=tuple(map(str, overlays)),
            identity=str(folder / "identity.tar"),
            console=str(console),
            direct=self.outside is not None,
        )
        self.hypervisor.create(machine_xml(self.lab, machine, self.environment, files, properties))

    def overlay(self, base: Path, overlay: Path) -> Path:
        """Make an empty qcow2 overlay on an image, in place of any that is there."""
        overlay.unlink(missing_ok=True)
        tool = process.require("qemu-img", package="qemu-utils")
        argv = [tool, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(overlay)]
        process.run(argv, what=f"cannot make the disk {overlay}", timeout=60)
        return overlay

    def issue_identity(self, machine: Machine, folder: Path) -> None:
        """Write a machine's identity archive, with fresh keys, and the host key we shall expect of it."""
        authority = Authority(self.workspace.pki)
        now = datetime.now(UTC)
        host = authority.host(machine.name, [nic.address for nic in machine.nics], now=now)
        tls = authority.tls(machine.name, now=now)
        keys = MachineKeys(
            host.private_key, host.certificate, authority.ssh_public_key, tls.private_key, tls.certificate, authority.tls_ca,
            authority.administrators_ca,
        )  # fmt: skip
        write_secret(folder / "identity.tar", pack(identity_files(self.lab, machine, keys)))
        (folder / "host_key.pub").write_text(host.public_key)


def destroy_machines(hypervisor: Hypervisor, lab: str, name: str = "") -> None:
    """Stop a lab's machine, or all of them; they are known by their mark.

    Raises:
        ProvisioningError: libvirt refuses.

    """
    for domain, found, _ in hypervisor.owned(lab):
        if name in ("", found):
            hypervisor.destroy(domain.name)
