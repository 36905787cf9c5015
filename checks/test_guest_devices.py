"""Virtual devices of guests, as libvirt, QEMU and the guests show them."""

from __future__ import annotations

from checks.support import device_breaches
from checks.support.breaches import needs_guest
from checks.support.device_breaches import NAME, lodger_breach, with_device, with_option
from checks.support.judging import judging
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.verify.check import Effect, check
from testbed.verify.devices import declared, observe, rules
from testbed.verify.fleet import Fleet, MachineView

_SHOWN = 6
_SHARED_MEMORY = (
    f"<shmem name='{NAME}'><model type='ivshmem-plain'/><size unit='M'>1</size>"
    "<address type='pci' domain='0x0000' bus='0x00' slot='0x1e' function='0x0'/></shmem>"
)
_USB = (
    "<controller type='usb' model='qemu-xhci'>"
    "<address type='pci' domain='0x0000' bus='0x00' slot='0x1e' function='0x0'/></controller>"
)


@check(
    id="DEV-01",
    objective="Every guest has exactly the virtual devices that the topology declares; none names its node",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        device_breaches.HIDDEN_PORT,
        device_breaches.HIDDEN_CHARDEV,
        device_breaches.HIDDEN_NETWORK,
        device_breaches.PLUGGED,
        lodger_breach(
            "a guest shares memory with its node",
            with_device(_SHARED_MEMORY),
            afterwards=f"rm -f /dev/shm/{NAME}",  # QEMU keeps the file
        ),
        lodger_breach("a guest has a USB controller", with_device(_USB)),
        lodger_breach("a guest has a debug console", with_option("-debugcon", "null")),
        device_breaches.NAMED_NODE,
    ),
)
def test_devices_are_declared(fleet: Fleet, node: MachineView) -> None:
    guests = {guest.domain: guest for guest in fleet.topology.guests_on(node.name)}
    wanted = {name: declared.entries(guest_xml(fleet.topology, guest, {})) for name, guest in guests.items()}
    faults = []
    with judging(f"the devices of guests on {node.name}"):
        for view in observe.domains(fleet, node):
            if view.name in wanted:
                rules.require_shown(wanted[view.name], view.entries)
                found = rules.different(wanted[view.name], view.entries)
            else:
                found = rules.foreign(wanted.values(), view.entries)
            faults += [f"{view.name}: {text}" for text in found]
        for guest, seen in observe.guests(fleet, node).items():
            rules.require_shown(wanted[guest.domain], seen.entries)
            found = rules.different(wanted[guest.domain], seen.entries)
            found += rules.leaked(seen.firmware, rules.identifiers(fleet.topology, guest))
            faults += [f"{guest.domain}: {text}" for text in found]
    assert not faults, f"{len(faults)} differences: {'; '.join(faults[:_SHOWN])}"
