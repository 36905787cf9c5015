"""Whether libvirt confines every guest, by its configuration and its behaviour (PRC-02)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from uuid import UUID, uuid5
from xml.etree import ElementTree as ET

from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.topology import Guest
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses import libvirt_conf

_FILE = "/etc/libvirt/qemu.conf"
_WANTED: dict[str, libvirt_conf.Value] = {
    "security_driver": ["apparmor"], "security_default_confined": 1, "security_require_confined": 1,
}  # fmt: skip
_REFUSED = "nconfined guests are not allowed"  # part of libvirt's message
_NAME = "un.confined"  # no guest of a topology can have a dot in its name
_LOGS = "/var/log/libvirt/qemu"


def unconfigured(node: MachineView) -> list[str]:
    """Return libvirt's confinement settings that are missing from its file, wrong or ambiguous.

    Raises:
        InstrumentError: the file cannot be parsed as libvirt parses it.
    """
    text = node.read(f"cat {_FILE}")
    try:
        found = libvirt_conf.read(text)
    except ValueError as error:
        raise InstrumentError(
            f"{_FILE} of {node.name} cannot be read", fact=str(error), remedy="run `testbed up`"
        ) from error
    told = {name: found.get(name, []) for name in _WANTED}
    return [
        f"{name} is {values or 'not set'}"
        for name, values in told.items()
        if not values or values.count(_WANTED[name]) < len(values)
    ]


def starts_unconfined(fleet: Fleet, guest: Guest) -> bool:
    """Return whether a guest's node starts a guest without an AppArmor profile.

    A guest that starts is created paused, and removed before it runs.

    Raises:
        InstrumentError: it does not start for another reason.
    """
    node = fleet.lab.nodes[guest.node]
    loner = replace(guest, name=_NAME, uuid=str(uuid5(UUID(guest.uuid), _NAME)), nics=(), volumes=())
    log = f"{_LOGS}/{loner.domain}.log"
    with ExitStack() as stack:
        for what, remove in (
            (f"the log of {loner.domain} on {guest.node}", partial(node.host.must, f"rm -f {log}*")),
            (f"the guest {loner.domain} on {guest.node}", partial(node.hypervisor.destroy, loner.domain)),
        ):
            stack.enter_context(fleet.leavings.made(what, remove))
        try:
            node.hypervisor.create(
                _unconfined(ET.fromstring(guest_xml(node.topology, loner, {}))), paused=True
            )
        except ProvisioningError as error:
            if _REFUSED in error.fact:
                return False
            what = f"{guest.node} does not tell whether it starts guests without a profile"
            raise InstrumentError(what, fact=error.fact, remedy=error.remedy) from error
    return True


def _unconfined(root: ET.Element) -> str:
    """Return the XML of a domain without disks and without a profile."""
    devices = root.find("devices")
    assert devices is not None
    for disk in devices.findall("disk"):
        devices.remove(disk)
    for label in root.findall("seclabel[@model='apparmor']"):
        root.remove(label)
    ET.SubElement(root, "seclabel", type="none", model="apparmor")
    return ET.tostring(root, encoding="unicode")
