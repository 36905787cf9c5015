"""An ephemeral guest that attacks from its first frame on, on a port new to OVN (NET-13).

It is confined like every other guest, has no disk of its own, and is removed afterwards with everything
that was created for it. If it is left behind, the run reports it, and so does the plan, since it carries
the lab's mark.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree as ET

from testbed import timeouts
from testbed.drivers.places.node import Node
from testbed.model import subjects
from testbed.model.reachability import Endpoint
from testbed.model.topology import IMAGES, Guest, GuestNic
from testbed.plan.libvirt_xml.guest import ONE_BUS, guest_xml
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.observation.port_counters import await_frames

NAME = "first.frame"  # no guest of a topology can have a dot in its name
TAP, SECOND_TAP = "tapfirst0", "tapfirst1"
BOOT = timeouts.EPHEMERAL_BOOT
_FOLDER = "/run/testbed-first"
_PROFILES, _LOGS = "/etc/apparmor.d/libvirt", "/var/log/libvirt/qemu"
_LIFE = timeouts.EPHEMERAL_LIFE
_MEMORY = 160 * 2**20
_FLOWING = 20  # frames
_SLOTS = 2  # one for its disk, one for the interface that is plugged in
_PROGRAM = Path(__file__).parents[2] / "payload/attacks/first_frame.py"
# Runs as process 1, from an initramfs over the guest image's own: loads modules in that image's order, waits
# for the disk, and starts the attack without systemd, so that the guest sends no other frame before it.
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
while [ ! -b /dev/vda ]; do /bin/busybox usleep 20000; done
/bin/busybox mount -t ext4 -o ro,noload /dev/vda /root
/bin/busybox mount -t sysfs sysfs /root/sys
/bin/busybox mount -t devtmpfs dev /root/dev
/bin/busybox chroot /root /usr/bin/python3 -I -S - < /attack.py
/bin/busybox poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Throwaway:
    """The ephemeral guest, and the endpoint that it pretends to be."""

    node: Node
    machine: MachineView
    guest: Guest

    @classmethod
    def beside(cls, fleet: Fleet, guest: Guest, address: IPv4Address, network: str = "") -> Throwaway:
        """Return one that belongs to a guest's tenant, on the guest's node.

        Args:
            address: an unused address of the network.
            network: one of the guest's networks; its first one if empty.
        """
        node = fleet.lab.nodes[guest.node]
        worker, uid = subjects.spare_worker(node.topology, node.name)
        own = str(
            uuid.uuid5(uuid.UUID(guest.uuid), NAME)
        )  # always the same, since libvirt leaves a file for each UUID on the node
        octets = uuid.uuid4().bytes
        nic = GuestNic(
            network or guest.nics[0].network, f"0e:{octets[:5].hex(':')}", address, str(uuid.uuid4()), TAP
        )
        return cls(
            node,
            fleet.machines[guest.node],
            replace(
                guest,
                name=NAME,
                uuid=own,
                memory=_MEMORY,
                vcpus=1,
                worker=worker,
                uid=uid,
                nics=(nic,),
                volumes=(),
            ),
        )

    @property
    def endpoint(self) -> Endpoint:
        """Its interface, as the source of frames."""
        nic = self.guest.nics[0]
        return Endpoint(self.guest.label, f"{self.guest.tenant}/{nic.network}", nic.mac, nic.address)

    @contextmanager
    def present(self, fleet: Fleet) -> Iterator[None]:
        """Remove everything of the guest after the block, each thing independently of the others.

        This includes resources that libvirt removes when a guest ends: in a damaged lab it may not.
        """
        domain, port, place = self.guest.domain, self.guest.nics[0].port, self.guest.node
        interfaces = " ".join(f"-- --if-exists del-port {tap}" for tap in (TAP, SECOND_TAP))
        profile = f"{_PROFILES}/libvirt-{self.guest.uuid}"
        files = (_FOLDER, profile, f"{profile}.files", f"{_LOGS}/{domain}.log*", f"{self.guest.console}*")
        removals: dict[str, Callable[[], object]] = {
            f"the files of {domain} on {place}": lambda: self.node.host.must(f"rm -rf {' '.join(files)}"),
            f"the interfaces {TAP} and {SECOND_TAP} in the switch of {place}": lambda: self.node.host.must(
                f"ovs-vsctl {interfaces}"
            ),
            f"the port {port} of {domain} in OVN's database": lambda: (
                fleet.lab.central.northbound.delete_port(port)
            ),
            f"the guest {domain} on {place}": lambda: self.node.hypervisor.destroy(domain),
        }
        with ExitStack() as stack:
            for what, remove in removals.items():  # removed last to first, users first
                stack.enter_context(fleet.leavings.made(what, remove))
            yield

    def start(self, frames: Sequence[bytes]) -> None:
        """Start the guest; it sends frames in rounds, from its first moment on.

        Raises:
            ProvisioningError: it does not start.
        """
        self.start_program(f"{_PROGRAM.read_text()}\nattack({list(frames)!r}, {_LIFE})\n")

    def start_paused(self) -> None:
        """Start the guest's worker; the guest itself does not run.

        Raises:
            ProvisioningError: it does not start.
        """
        self.start_program("", paused=True)

    def start_program(self, program: str, *, paused: bool = False) -> None:
        """Start the guest with a program in Python, its only one; OVN does not know its port.

        Args:
            paused: its processors do not run.

        Raises:
            ProvisioningError: it does not start.
        """
        self.node.hypervisor.destroy(self.guest.domain)
        archive = cpio({"init": _INIT.encode(), "attack.py": program.encode()})
        self.node.host.must(
            f"rm -rf {_FOLDER} && mkdir {_FOLDER} && cat {IMAGES}/guest/initrd - > {_FOLDER}/initrd",
            stdin=archive,
        )
        self.node.hypervisor.create(_xml(self.node, self.guest), paused=paused)

    def reset_attacking(self) -> None:
        """Reset the guest, and return when it has booted and attacks again.

        Raises:
            InstrumentError: it does not attack in time.
        """
        self.node.hypervisor.reset(self.guest.domain)
        self.require_flowing(TAP, BOOT)

    def plug_attacking(self) -> None:
        """Plug in a second interface on a port unknown to OVN; return when it sends attacks.

        Raises:
            InstrumentError: it does not attack in time.
        """
        self.node.hypervisor.attach(self.guest.domain, second_interface(_xml(self.node, self.guest)))
        self.require_flowing(SECOND_TAP, BOOT)

    def require_flowing(self, tap: str, patience: float) -> None:
        """Return when the node counts frames from one of the guest's interfaces.

        Args:
            patience: seconds.

        Raises:
            InstrumentError: too few frames in time.
        """
        await_frames(self.machine, [tap], _FLOWING, patience)


def _xml(node: Node, guest: Guest) -> str:
    root = ET.fromstring(guest_xml(node.topology, guest, {}))
    for path, text in (
        ("os/initrd", f"{_FOLDER}/initrd"),
        ("os/cmdline", f"console=ttyS0 quiet panic=1 ipv6.disable=1 {ONE_BUS}"),
    ):
        element = root.find(path)
        assert element is not None
        element.text = text
    devices, disk = root.find("devices"), root.find("devices/disk")
    assert devices is not None
    assert disk is not None
    devices.remove(disk)
    base = ET.fromstring(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source "
        f"file='{IMAGES}/guest/root.raw'/>"
        "<target dev='vda' bus='virtio'/><readonly/></disk>"
    )
    devices.insert(0, base)
    ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(_SLOTS):
        ET.SubElement(devices, "controller", type="pci", model="pcie-root-port")
    return ET.tostring(root, encoding="unicode")


def second_interface(domain: str) -> str:
    """Return a copy of a domain's first interface with new names and no fixed PCI address."""
    interface = ET.fromstring(domain).find("devices/interface")
    assert interface is not None
    for path, name, value in (
        ("mac", "address", f"0e:{uuid.uuid4().bytes[:5].hex(':')}"),
        ("target", "dev", SECOND_TAP),
        ("virtualport/parameters", "interfaceid", str(uuid.uuid4())),
    ):
        element = interface.find(path)
        assert element is not None
        element.set(name, value)
    for place in interface.findall("address"):
        interface.remove(place)
    return ET.tostring(interface, encoding="unicode")


def cpio(files: dict[str, bytes]) -> bytes:
    """Return an archive of executable files, which the kernel unpacks over the preceding one.

    The format is newc (kernel documentation, initramfs buffer format): the header's fields are inode, mode,
    uid, gid, links, time, size, four device numbers, length of the name with its NUL, and a checksum; names
    and contents are padded to 4 octets.
    """
    parts = []
    for number, (name, content) in enumerate([*files.items(), ("TRAILER!!!", b"")], start=1):
        mode = 0o100755 if content else 0
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        parts.append(head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4))
    return b"".join(parts)
