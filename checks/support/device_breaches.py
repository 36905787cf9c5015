"""Breaches that give a guest a device: through libvirt, behind its back, or in a guest of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from xml.etree import ElementTree as ET

from checks.support.breaches import shell_breach
from checks.support.lodger import lodger, start_lodger, stop_lodger
from testbed.errors import InstrumentError
from testbed.plan.libvirt_xml.elements import QEMU
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.plan.resources import Key, Kind
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach

NAME = "breach"
_TRIES, _PAUSE = 40, 0.5  # seconds between them
_ABSENT = "not found"  # in QEMU's message about an object that does not exist
_CHANNEL = f"<channel type='null'><target type='virtio' name='{NAME}'/><alias name='ua-{NAME}'/></channel>"
_TABLES = f"""
<domain>
  <sysinfo type="smbios"><system><entry name="serial">{{node}}</entry></system></sysinfo>
  <sysinfo type="fwcfg"><entry name="opt/{NAME}">{{node}}</entry></sysinfo>
</domain>
"""
Command = tuple[str, dict[str, object]]


def monitor_breach(name: str, opens: list[Command], closes: list[Command], shows: Command) -> Breach:
    """Return a breach by commands to the monitor of the first guest's QEMU; libvirt does not know of them.

    Args:
        shows: a question; its answer contains the breach's name in quotes or before a colon.
    """

    def ask(context: BreachContext, command: Command) -> object:
        return context.node.hypervisor.ask_monitor(context.guest.domain, *command)

    def open_(context: BreachContext) -> None:
        for command in opens:
            ask(context, command)

    def close(context: BreachContext) -> None:
        for command in closes:
            _settled(partial(ask, context, command))

    def in_force(context: BreachContext) -> bool:
        text = str(ask(context, shows))
        return f"'{NAME}'" in text or f"{NAME}:" in text

    return Breach(name, open=open_, close=close, in_force=in_force)


def _settled(remove: Callable[[], object]) -> None:
    """Remove an object of QEMU; one that a device still holds is tried again, as the device goes by itself.

    Raises:
        InstrumentError: it stays.
    """
    for left in reversed(range(_TRIES)):
        try:
            remove()
        except InstrumentError as error:
            if _ABSENT in error.fact:
                return
            if not left:
                raise
            time.sleep(_PAUSE)
        else:
            return


HIDDEN_PORT = monitor_breach(
    "QEMU has a serial port of which libvirt does not know",
    [
        ("chardev-add", {"id": NAME, "backend": {"type": "null", "data": {}}}),
        (
            "device_add",
            {
                "driver": "virtserialport",
                "bus": "virtio-serial0.0",
                "id": NAME,
                "chardev": NAME,
                "name": NAME,
            },
        ),
    ],
    [("device_del", {"id": NAME}), ("chardev-remove", {"id": NAME})],
    ("qom-list", {"path": "/machine/peripheral"}),
)
HIDDEN_CHARDEV = monitor_breach(
    "QEMU has a character device of which libvirt does not know",
    [("chardev-add", {"id": NAME, "backend": {"type": "null", "data": {}}})],
    [("chardev-remove", {"id": NAME})],
    ("query-chardev", {}),
)
HIDDEN_NETWORK = monitor_breach(
    "QEMU has a network of its own, of which libvirt does not know",
    [("netdev_add", {"type": "user", "id": NAME})],
    [("netdev_del", {"id": NAME})],
    ("human-monitor-command", {"command-line": "info network"}),
)
PLUGGED = shell_breach(
    "libvirt plugs a channel into a running guest",
    opens=lambda context: (
        f'echo "{_CHANNEL}" > /run/{NAME}.xml && '
        f"virsh -q attach-device {context.guest.domain} /run/{NAME}.xml --live"
    ),
    closes=lambda context: (
        f"virsh -q detach-device-alias {context.guest.domain} ua-{NAME} --live; rm -f /run/{NAME}.xml; "
        f"for look in $(seq 40); do virsh dumpxml {context.guest.domain} | grep -q ua-{NAME} || exit 0; "
        "sleep 0.5; done; exit 1"
    ),
    shows=lambda context: f"virsh dumpxml {context.guest.domain} | grep -q ua-{NAME}",
)


def lodger_breach(name: str, change: Callable[[ET.Element], object], afterwards: str = "true") -> Breach:
    """Return a breach by a paused guest that the topology does not know, with a changed domain.

    Args:
        afterwards: commands that remove what the guest leaves on its node.
    """

    def close(context: BreachContext) -> None:
        stop_lodger(context)
        context.host.must(afterwards)

    return Breach(
        name,
        open=lambda context: start_lodger(context, change=change),
        close=close,
        in_force=lambda context: context.host.sudo(f"virsh -q domstate {lodger(context).domain}").status == 0,
    )


def with_device(text: str) -> Callable[[ET.Element], object]:
    """Return a change that adds a device to a domain; another controller of its type is removed."""

    def change(root: ET.Element) -> None:
        device, devices = ET.fromstring(text), root.find("devices")
        assert devices is not None
        for other in devices.findall(f"controller[@type='{device.get('type')}']"):
            devices.remove(other)
        devices.append(device)

    return change


def with_option(*words: str) -> Callable[[ET.Element], object]:
    """Return a change that adds words to the command line of QEMU."""

    def change(root: ET.Element) -> None:
        line = ET.SubElement(root, f"{{{QEMU}}}commandline")
        for word in words:
            ET.SubElement(line, f"{{{QEMU}}}arg", value=word)

    return change


def booted_breach(
    name: str, change: Callable[[ET.Element, str], object], changed: Callable[[str], bool]
) -> Breach:
    """Return a breach by the first guest of a node, which boots with a changed domain.

    Args:
        change: changes the domain, given the name of its node.
        changed: whether the XML of a running domain has the change.
    """

    def described(context: BreachContext) -> ET.Element:
        properties = context.lab.desired[Key(context.node.name, Kind.GUEST, context.guest.label)].properties
        return ET.fromstring(guest_xml(context.topology, context.guest, properties))

    def open_(context: BreachContext) -> None:
        root = described(context)
        change(root, context.node.name)
        context.node.boot(context.guest, ET.tostring(root, encoding="unicode"))

    def in_force(context: BreachContext) -> bool:
        hypervisor, domain = context.node.hypervisor, context.guest.domain
        return hypervisor.runs(domain) and changed(hypervisor.live_xml(domain))

    def close(context: BreachContext) -> None:
        if in_force(context) or not context.node.hypervisor.runs(context.guest.domain):
            context.node.boot(context.guest, ET.tostring(described(context), encoding="unicode"))

    return Breach(name, open=open_, close=close, in_force=in_force)


def _name_node(root: ET.Element, node: str) -> None:
    boot = root.find("os")
    assert boot is not None
    root.extend(ET.fromstring(_TABLES.format(node=node)))
    ET.SubElement(boot, "smbios", mode="sysinfo")


NAMED_NODE = booted_breach("the firmware of a guest names its node", _name_node, lambda xml: "<smbios" in xml)
