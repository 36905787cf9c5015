"""libvirt domain XML of machines and guests: pure functions of the resolved lab.

Every domain says who made it, and from what: lab, name and the properties it was made from stand in its
metadata, so that a later run can tell what changed (D9).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from uuid import UUID
from xml.etree import ElementTree as ET

from testbed.model.facts import Accelerator, Environment
from testbed.model.testbed import (
    FIRST_WORKER_UID,
    IMAGES,
    Guest,
    GuestNic,
    Limits,
    Machine,
    MachineNic,
    Role,
    Testbed,
    Volume,
)
from testbed.spec.schema import GUEST_MEMORY, MIB

NAMESPACE = "https://testbed.invalid/lab/1"
WAITING = "waits for its memory"  # title of a domain that nothing but its memory brings to life
CREDENTIAL = "opt/io.systemd.credentials/testbed.identity"
GUEST_TO_SAVE = "opt/testbed/guest"  # of the firmware of a node without identity: the domain of a guest without identity
ANONYMOUS = "anonymous"  # name of a domain whose memory is to be saved
_TRANSLATION_CACHE_MIB = 512
# Emulated CMPXCHG16B leaves an operand in the flags register; kernels die of it now and then (docs/decisions/0015).
_MISTRANSLATED = ("cx16",)
# A busy emulator reads clocks late; the kernel's watchdog then gives the TSC up for one that traps on every look.
_CLOCK = ("tsc=nowatchdog",)
# What a nested guest does before its kernel runs, and each look for a bus that is not there, costs its node (docs/decisions/0020).
# With it libvirt asks a worker for each of some 400 CPU properties by itself when it starts, nine seconds under emulation.
_UNASKED = "cpu-unavailable-features"
_FIRMWARE = "/var/lib/testbed/qboot.rom"
ONE_BUS = "pci=lastbus=0"
SAVED_VOLUME = 64 * MIB  # size of the volume of the guest whose memory is saved
_SLOTS = range(1, 31)  # of a q35's root bus; the last one holds the chipset
_QUIET = "quiet loglevel=3 systemd.show_status=no"
_NODE = (
    "apparmor=1 security=apparmor audit=1",
    f"testbed.mount=/dev/vdb:{IMAGES}:ro,nodev,nosuid,noexec",
    "testbed.mount=/dev/vdc:/var/lib/testbed/pools:noatime,nodev,nosuid,noexec",
)
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("testbed", NAMESPACE)
ET.register_namespace("qemu", _QEMU)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine's virtual hardware depends on: machines of equal hardware can start from the same saved memory.

    Args:
        memory: bytes.
        vcpus: virtual CPUs that it really gets.
        nics: interfaces, which are plugged in when it has started.

    """

    role: Role
    memory: int
    vcpus: int
    nics: int

    @classmethod
    def of(cls, machine: Machine, environment: Environment) -> Hardware:
        """Return the hardware of a machine."""
        return cls(machine.role, machine.memory, environment.vcpus(machine.vcpus), len(machine.nics))

    def __str__(self) -> str:
        return f"{self.role} with {self.memory // 2**20} MiB"


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """Paths on the outer machine that a machine's domain refers to.

    Args:
        disks: qcow2 overlays in the order vda, vdb, vdc.
        console: file that receives the serial console from the first byte.
        direct: the machine's interfaces are macvtaps on devices of the daemon's network namespace, not taps of ours.

    """

    kernel: str
    initrd: str
    disks: tuple[str, ...]
    identity: str
    console: str
    direct: bool = False


def _sub(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _domain(kind: str, name: str, uuid: str, memory: int, vcpus: int) -> ET.Element:
    root = ET.Element("domain", type=kind)
    _sub(root, "name", name)
    _sub(root, "uuid", uuid)
    _sub(root, "memory", str(memory), unit="b")
    _sub(root, "vcpu", str(vcpus))
    return root


def _metadata(root: ET.Element, lab: str, name: str, properties: Mapping[str, object]) -> None:
    mark = _sub(_sub(root, "metadata"), f"{{{NAMESPACE}}}lab", name=lab, resource=name)
    mark.text = json.dumps(properties, sort_keys=True)


def read_mark(xml: str) -> tuple[str, str, dict[str, object]] | None:
    """Return lab, resource and properties from a domain's metadata, or None if it is not ours."""
    mark = ET.fromstring(xml).find(f"metadata/{{{NAMESPACE}}}lab")
    if mark is None:
        return None
    return mark.get("name", ""), mark.get("resource", ""), json.loads(mark.text or "{}")


def interface_count(xml: str) -> int:
    """Return how many interfaces a domain has."""
    return len(ET.fromstring(xml).findall("devices/interface"))


def _boot(root: ET.Element, kernel: str, initrd: str, words: Iterable[str], *, firmware: str = "") -> None:
    boot = _sub(root, "os")
    _sub(boot, "type", "hvm", arch="x86_64", machine="q35")
    if firmware:
        _sub(boot, "loader", firmware, type="rom")
    _sub(boot, "kernel", kernel)
    _sub(boot, "initrd", initrd)
    _sub(boot, "cmdline", " ".join(("console=ttyS0 root=/dev/vda rw", _QUIET, *words)))


def _disk(devices: ET.Element, path: str, target: str, form: str, **driver: str) -> None:
    disk = _sub(devices, "disk", type="file", device="disk")
    _sub(disk, "driver", name="qemu", type=form, **driver)
    _sub(disk, "source", file=path)
    _sub(disk, "target", dev=target, bus="virtio")


def _common_devices(devices: ET.Element) -> None:
    _sub(devices, "controller", type="usb", model="none")
    _sub(devices, "memballoon", model="none")
    _sub(_sub(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")


def _on_the_root_bus(devices: ET.Element) -> None:
    """Put a guest's devices on the PCI root bus, without a bridge for each: every look at one costs a nested exit or more."""
    kinds = ("interface", "disk", "controller[@type='virtio-serial']", "rng")
    for slot, device in zip(_SLOTS, (device for kind in kinds for device in devices.findall(kind)), strict=False):
        _sub(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function="0x0")


def machine_id(uuid: str) -> str:
    """Return the systemd machine id of a machine or guest (32 hexadecimal digits)."""
    return uuid.replace("-", "")


def machine_xml(
    lab: Testbed, machine: Machine, environment: Environment, files: MachineFiles, properties: Mapping[str, object],
    *, generation: str = "",
) -> str:  # fmt: skip
    """Return the domain of a node or the controller on the outer machine.

    Args:
        lab: the lab it belongs to.
        machine: what it is.
        environment: accelerator and emulator of the outer machine.
        files: what it is made from.
        properties: desired properties, recorded in the metadata.
        generation: random UUID of a machine that waits for saved memory and gets its interfaces afterwards; the empty
            string stands for a machine that boots.

    """
    hardware = Hardware.of(machine, environment)
    root = _domain(_kind(environment), machine.domain(lab.name), machine.uuid, hardware.memory, hardware.vcpus)
    _metadata(root, lab.name, machine.name, properties)
    words = (f"systemd.hostname={machine.name}", f"systemd.machine_id={machine_id(machine.uuid)}")
    interfaces = [] if generation else [_interface(nic, direct=files.direct) for nic in machine.nics]
    devices = _machine(root, hardware, environment, files, words, interfaces)
    identity = _sub(root, "sysinfo", type="fwcfg")
    _sub(identity, "entry", name=CREDENTIAL, file=files.identity)
    if generation:
        _pluggable(root, devices, hardware, generation)
        _await_memory(root)
    return _text(root)


def resumed_xml(saved: str, generation: str) -> str:
    """Return the domain of a machine that goes on where it was saved.

    Args:
        saved: the domain that it was then.
        generation: random UUID, from which its kernel learns that it is not the only one with this memory.

    """
    root = ET.fromstring(saved)
    root.insert(0, _sub(ET.Element("none"), "title", WAITING))
    found = root.find("genid")
    if found is not None:
        found.text = generation
    if root.find(f"{{{_QEMU}}}commandline") is None:
        _await_memory(root)
    return _text(root)


def _await_memory(root: ET.Element) -> None:
    """Let QEMU wait for saved memory before anything runs."""
    arguments = _sub(root, f"{{{_QEMU}}}commandline")
    for word in ("-incoming", "defer"):
        _sub(arguments, f"{{{_QEMU}}}arg", value=word)


def waits(xml: str) -> bool:
    """Tell whether a domain still waits for its memory."""
    return ET.fromstring(xml).findtext("title") == WAITING


def anonymous_xml(hardware: Hardware, environment: Environment, files: MachineFiles, generation: str) -> str:
    """Return the domain of a machine that has no identity and no interfaces, and whose memory is to be saved."""
    root = _domain(_kind(environment), ANONYMOUS, generation, hardware.memory, hardware.vcpus)
    devices = _machine(root, hardware, environment, files, ("testbed.golden",), ())
    if hardware.role is Role.NODE:
        _sub(_sub(root, "sysinfo", type="fwcfg"), "entry", name=GUEST_TO_SAVE, file=files.identity)
    _pluggable(root, devices, hardware, generation)
    return _text(root)


def interface_xml(nic: MachineNic) -> str:
    """Return an interface, for a machine that has started already."""
    return _text(_interface(nic, direct=False))


def _kind(environment: Environment) -> str:
    return "kvm" if environment.outer is Accelerator.KVM else "qemu"


def _machine(
    root: ET.Element, hardware: Hardware, environment: Environment, files: MachineFiles, words: Sequence[str],
    interfaces: Sequence[ET.Element],
) -> ET.Element:  # fmt: skip
    """Add what a machine boots and its hardware to a domain; return its devices."""
    _boot(root, files.kernel, files.initrd, (*words, *_CLOCK, *(_NODE if hardware.role is Role.NODE else ())))
    features = _sub(root, "features")
    _sub(features, "acpi")
    if environment.outer is Accelerator.KVM:
        _sub(root, "cpu", mode="host-passthrough")
    else:
        _sub(_sub(features, "tcg"), "tb-cache", str(_TRANSLATION_CACHE_MIB), unit="MiB")
        cpu = _sub(root, "cpu", mode="custom", match="exact")
        _sub(cpu, "model", "EPYC", fallback="forbid")
        for feature in ("svm", "npt") if hardware.role is Role.NODE else ():
            _sub(cpu, "feature", policy="require", name=feature)
        for feature in _MISTRANSLATED:
            _sub(cpu, "feature", policy="disable", name=feature)
    _sub(root, "clock", offset="utc")
    _sub(root, "on_crash", "destroy")
    devices = _sub(root, "devices")
    _sub(devices, "emulator", environment.emulator)
    for path, target in zip(files.disks, ("vda", "vdb", "vdc"), strict=False):
        _disk(devices, path, target, "qcow2", cache="unsafe", discard="unmap")
    devices.extend(interfaces)
    serial = _sub(devices, "serial", type="pty")
    _sub(serial, "log", file=files.console, append="on")
    _common_devices(devices)
    return devices


def _interface(nic: MachineNic, *, direct: bool) -> ET.Element:
    interface = ET.Element("interface", type="direct" if direct else "ethernet")
    _sub(interface, "mac", address=nic.mac)
    if direct:
        _sub(interface, "source", dev=nic.tap, mode="passthrough")
    else:
        _sub(interface, "target", dev=nic.tap, managed="no")
    _sub(interface, "model", type="virtio")
    return interface


def _pluggable(root: ET.Element, devices: ET.Element, hardware: Hardware, generation: str) -> None:
    """Give a machine a port for every device that it has or will get, and a generation, whose change its kernel notices."""
    _sub(root, "genid", generation)
    ports = hardware.nics + len(devices.findall("disk")) + len(devices.findall("rng"))
    _sub(devices, "controller", type="pci", index="0", model="pcie-root")
    for index in range(1, ports + 1):
        _sub(devices, "controller", type="pci", index=str(index), model="pcie-root-port")


def guest_xml(lab: Testbed, guest: Guest, properties: Mapping[str, object], *, waiting: bool = False) -> str:
    """Return the domain of a guest on its node: KVM, confined, under an account of its own (PRC-01, PRC-02).

    Args:
        waiting: it starts from saved memory, and is nobody until its title is taken away.

    """
    root = _domain("kvm", guest.domain, guest.uuid, guest.memory, guest.vcpus)
    if waiting:
        root.insert(0, _sub(ET.Element("none"), "title", WAITING))
    _metadata(root, lab.name, guest.label, properties)
    words = [f"systemd.hostname={guest.name}", f"systemd.machine_id={machine_id(guest.uuid)}"]
    words += [f"testbed.dhcp6={nic.mac}" for nic in guest.nics if nic.address6]
    _guest(root, guest, words)
    return _text(root)


def anonymous_guest_xml() -> str:
    """Return the domain of a guest that has no identity, and whose memory is to be saved: what most guests are like (`is_usual`)."""
    nic = GuestNic("anonymous", "0e:00:00:00:00:01", IPv4Address(0), "", "tapanonymous")
    guest = Guest(
        ANONYMOUS, ANONYMOUS, "", str(UUID(int=1)), GUEST_MEMORY, 1, "worker00", FIRST_WORKER_UID, (nic,),
        (Volume("data", SAVED_VOLUME, "data.raw"),), Limits(0, 0, 0),
    )  # fmt: skip
    root = _domain("kvm", ANONYMOUS, guest.uuid, guest.memory, guest.vcpus)
    _guest(root, guest, ["testbed.golden"])
    interface = root.find("devices/interface")
    assert interface is not None
    interface.set("type", "ethernet")  # there is no switch yet
    for tag in ("source", "virtualport"):
        interface.remove(interface.find(tag))  # type: ignore[arg-type]
    return _text(root)


def is_usual(guest: Guest) -> bool:
    """Tell whether a guest's hardware is that of the guest whose memory is saved, but for the size of its volume."""
    return (guest.memory, guest.vcpus, len(guest.nics), len(guest.volumes)) == (GUEST_MEMORY, 1, 1, 1)


def _guest(root: ET.Element, guest: Guest, words: Sequence[str]) -> None:
    """Add what a guest boots, its hardware and its confinement to a domain."""
    _sub(_sub(root, "memoryBacking"), "nosharepages")
    _boot(root, f"{IMAGES}/guest/vmlinux", f"{IMAGES}/guest/initrd", (*words, ONE_BUS), firmware=_FIRMWARE)
    _sub(_sub(root, "features"), "acpi")
    cpu = _sub(root, "cpu", mode="host-passthrough", check="none")
    _sub(cpu, "feature", policy="disable", name="svm")
    # An HPET that the guest has ceased to use still wakes its worker a hundred times a second.
    _sub(_sub(root, "clock", offset="utc"), "timer", name="hpet", present="no")
    _sub(root, "on_crash", "destroy")
    devices = _sub(root, "devices")
    disk = _sub(devices, "disk", type="file", device="disk")
    _sub(disk, "driver", name="qemu", type="qcow2", cache="none")
    _sub(disk, "source", file=guest.root_disk)
    backing = _sub(disk, "backingStore", type="file")
    _sub(backing, "format", type="raw")
    _sub(backing, "source", file=f"{IMAGES}/guest/root.raw")
    _sub(disk, "target", dev="vda", bus="virtio")
    for letter, volume in zip("bcdefghijklmnop", guest.volumes, strict=False):
        _disk(devices, f"{guest.pool}/{volume.file}", f"vd{letter}", "raw", cache="none")
    for nic in guest.nics:
        interface = _sub(devices, "interface", type="bridge")
        _sub(interface, "mac", address=nic.mac)
        _sub(interface, "source", bridge="br-int")
        _sub(_sub(interface, "virtualport", type="openvswitch"), "parameters", interfaceid=nic.port)
        _sub(interface, "target", dev=nic.tap)
        _sub(interface, "model", type="virtio")
    _sub(devices, "controller", type="virtio-serial", index="0")
    channel = _sub(devices, "channel", type="unix")
    _sub(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    serial = _sub(devices, "serial", type="pty")
    _sub(serial, "log", file=guest.console, append="off")  # virtlogd writes it, and keeps it short
    _common_devices(devices)
    _on_the_root_bus(devices)
    label = _sub(root, "seclabel", type="static", model="dac", relabel="yes")
    _sub(label, "label", f"{guest.worker}:{guest.worker}")
    _sub(root, "seclabel", type="dynamic", model="apparmor", relabel="yes")
    _sub(_sub(root, f"{{{_QEMU}}}capabilities"), f"{{{_QEMU}}}del", capability=_UNASKED)


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
