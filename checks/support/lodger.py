"""A guest that no topology knows, on the node of a case: breaches start it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID, uuid5
from xml.etree import ElementTree as ET

from checks.support.breaches import profile
from testbed.model.subjects import sharers
from testbed.model.topology import Guest
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.verify.breach_context import BreachContext

_NAME = "a.lodger"  # no guest of a topology can have a dot in its name


def lodger(context: BreachContext) -> Guest:
    """Return a guest without disks and interfaces, under the worker account of the first guest.

    It belongs to another tenant if there is one.
    """
    host, guest = sharers(context.topology, context.node.name) or (context.guest, context.guest)
    return replace(
        guest,
        name=_NAME,
        uuid=str(uuid5(UUID(guest.uuid), _NAME)),
        worker=host.worker,
        uid=host.uid,
        nics=(),
        volumes=(),
    )


def start_lodger(
    context: BreachContext,
    account: str = "",
    group: str = "",
    change: Callable[[ET.Element], object] = lambda _: None,
) -> None:
    """Start the lodger, paused: its worker runs without a boot.

    Args:
        account: account of its worker; that of the first guest if empty.
        group: likewise.
        change: changes its domain.
    """
    root = ET.fromstring(guest_xml(context.topology, lodger(context), {}))
    devices, label = root.find("devices"), root.find("seclabel[@model='dac']/label")
    assert devices is not None
    assert label is not None
    for disk in devices.findall("disk"):
        devices.remove(disk)
    own = lodger(context).worker
    label.text = f"{account or own}:{group or own}"
    change(root)
    context.node.hypervisor.create(ET.tostring(root, encoding="unicode"), paused=True)


def stop_lodger(context: BreachContext) -> None:
    """Stop the lodger, and remove its profile, its log and its console, whose files libvirt keeps."""
    guest = lodger(context)
    context.node.hypervisor.destroy(guest.domain)
    log = f"/var/log/libvirt/qemu/{guest.domain}.log*"
    context.host.must(f"rm -f {profile(guest)} {profile(guest)}.files {log} {guest.console}*")
