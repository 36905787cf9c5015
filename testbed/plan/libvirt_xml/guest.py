"""libvirt domain XML of guests on their nodes: pure functions of the resolved lab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from uuid import UUID
from xml.etree import ElementTree as ET

from testbed.model.topology import (
    FIRST_WORKER_UID,
    IMAGES,
    Guest,
    GuestNic,
    Limits,
    Topology,
    Volume,
    volume_secret,
)
from testbed.plan.libvirt_xml.elements import (
    QEMU,
    add_boot,
    add_common_devices,
    add_disk,
    add_encryption,
    add_mark,
    domain_of,
    mark_waiting,
    sub,
    text_of,
)
from testbed.plan.libvirt_xml.limits import add_disk_limits, add_limits
from testbed.plan.libvirt_xml.machine import ANONYMOUS, machine_id
from testbed.topology_file.quantities import MIB
from testbed.topology_file.schema import GUEST_MEMORY

# The firmware's work before a nested guest's kernel runs, and each probe of a missing bus, cost its node time
# (docs/decisions/0020).
# With this capability libvirt queries each of some 400 CPU properties when a worker starts: nine seconds
# under emulation.
_UNASKED = "cpu-unavailable-features"
_FIRMWARE = "/var/lib/testbed/qboot.rom"
ONE_BUS = "pci=lastbus=0"
_NESTING = ("svm", "vmx")  # features of AMD's and Intel's processors that run guests
SAVED_VOLUME = 64 * MIB  # size of the volume of the guest whose memory is saved
_SLOTS = range(1, 31)  # of a q35's root bus; the last one holds the chipset


def guest_xml(
    topology: Topology, guest: Guest, properties: Mapping[str, object], *, waiting: bool = False
) -> str:
    """Return the domain of a guest: KVM, confined, under an account of its own (PRC-01, PRC-02).

    Args:
        waiting: it starts from saved memory, and has no identity until its title is removed.

    """
    root = domain_of("kvm", guest.domain, guest.uuid, guest.memory, guest.vcpus)
    if waiting:
        mark_waiting(root)
    add_mark(root, topology.name, guest.label, properties)
    words = [f"systemd.hostname={guest.name}", f"systemd.machine_id={machine_id(guest.uuid)}"]
    words += [f"testbed.dhcp6={nic.mac}" for nic in guest.nics if nic.address6]
    _guest(root, guest, words)
    return text_of(root)


def anonymous_guest_xml() -> str:
    """Return the domain of a guest without identity, whose memory is to be saved.

    Its hardware is that of most guests (`is_usual`).
    """
    nic = GuestNic("anonymous", "0e:00:00:00:00:01", IPv4Address(0), "", "tapanonymous")
    guest = Guest(
        ANONYMOUS, ANONYMOUS, "", str(UUID(int=1)), GUEST_MEMORY, 1, "worker00", FIRST_WORKER_UID, (nic,),
        (Volume("data", SAVED_VOLUME, "data.raw"),), Limits(0, 0, 0),
    )  # fmt: skip
    root = domain_of("kvm", ANONYMOUS, guest.uuid, guest.memory, guest.vcpus)
    _guest(root, guest, ["testbed.golden"])
    interface = root.find("devices/interface")
    assert interface is not None
    interface.set("type", "ethernet")  # there is no switch yet
    for tag in ("source", "virtualport"):
        interface.remove(interface.find(tag))  # type: ignore[arg-type]
    return text_of(root)


def is_usual(guest: Guest) -> bool:
    """Return whether a guest's hardware equals that of the guest whose memory is saved.

    The size of its volume may differ. An image in a volume is read by a kernel that boots.
    """
    if any(volume.image for volume in guest.volumes):
        return False
    return (guest.memory, guest.vcpus, len(guest.nics), len(guest.volumes)) == (GUEST_MEMORY, 1, 1, 1)


def _guest(root: ET.Element, guest: Guest, words: Sequence[str]) -> None:
    """Add a guest's kernel, hardware and confinement to a domain."""
    add_limits(root, guest)
    sub(sub(root, "memoryBacking"), "nosharepages")
    add_boot(root, f"{IMAGES}/guest/vmlinux", f"{IMAGES}/guest/initrd", (*words, ONE_BUS), firmware=_FIRMWARE)
    features = sub(root, "features")
    sub(features, "acpi")
    sub(features, "pmu", state="off")
    cpu = sub(root, "cpu", mode="host-passthrough", check="none")
    for name in _NESTING:  # CMP-04: a guest is no hypervisor
        sub(cpu, "feature", policy="disable", name=name)
    # An HPET that the guest no longer uses still wakes its worker a hundred times a second.
    sub(sub(root, "clock", offset="utc"), "timer", name="hpet", present="no")
    sub(root, "on_crash", "destroy")
    devices = sub(root, "devices")
    disk = sub(devices, "disk", type="file", device="disk")
    sub(disk, "driver", name="qemu", type="qcow2", cache="none")
    sub(disk, "source", file=guest.root_disk)
    backing = sub(disk, "backingStore", type="file")
    sub(backing, "format", type="raw")
    sub(backing, "source", file=f"{IMAGES}/guest/root.raw")
    sub(disk, "target", dev="vda", bus="virtio")
    for letter, volume in zip("bcdefghijklmnop", guest.volumes, strict=False):
        disk = add_disk(devices, f"{guest.pool}/{volume.file}", f"vd{letter}", "raw", cache="none")
        if volume.encrypted:
            add_encryption(disk, volume_secret(guest.tenant))
    for nic in guest.nics:
        interface = sub(devices, "interface", type="bridge")
        sub(interface, "mac", address=nic.mac)
        sub(interface, "source", bridge="br-int")
        sub(sub(interface, "virtualport", type="openvswitch"), "parameters", interfaceid=nic.port)
        sub(interface, "target", dev=nic.tap)
        sub(interface, "model", type="virtio")
    sub(devices, "controller", type="virtio-serial", index="0")
    channel = sub(devices, "channel", type="unix")
    sub(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    serial = sub(devices, "serial", type="pty")
    sub(serial, "log", file=guest.console, append="off")  # virtlogd writes it, and keeps it short
    add_common_devices(devices)
    _on_the_root_bus(devices)
    add_disk_limits(devices, guest)
    label = sub(root, "seclabel", type="static", model="dac", relabel="yes")
    sub(label, "label", f"{guest.worker}:{guest.worker}")
    sub(root, "seclabel", type="dynamic", model="apparmor", relabel="yes")
    sub(sub(root, f"{{{QEMU}}}capabilities"), f"{{{QEMU}}}del", capability=_UNASKED)


def _on_the_root_bus(devices: ET.Element) -> None:
    """Put a guest's devices on the PCI root bus, without a bridge for each.

    Every access to a bridge costs at least one nested exit.
    """
    kinds = ("interface", "disk", "controller[@type='virtio-serial']", "rng")
    for slot, device in zip(
        _SLOTS, (device for kind in kinds for device in devices.findall(kind)), strict=False
    ):
        sub(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function="0x0")
