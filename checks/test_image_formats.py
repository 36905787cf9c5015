"""Formats of images, attacked by guests that write the headers of other formats into their volumes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree as ET

from checks.support.breaches import needs_guest, shell_breach, where
from checks.support.device_breaches import NAME, lodger_breach
from checks.support.hostile_volumes import overwritten
from checks.support.judging import judging
from testbed import payload
from testbed.model.topology import POOLS, Guest
from testbed.plan.libvirt_xml.elements import add_disk
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.devices import observe
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.storage import images

_PROGRAM = Path(payload.__file__).parent / "image_probe.py"
_TIMEOUT = 240.0  # seconds
_SHOWN = 6


def _has_volume(context: BreachContext) -> bool:
    return any(guest.volumes for guest in context.guests)


def _victim(context: BreachContext) -> Guest:
    return next(guest for guest in context.guests if guest.volumes)


def _unpool(context: BreachContext) -> str:
    return f"virsh -q pool-destroy {NAME} 2>/dev/null; ! virsh -q pool-info {NAME} >/dev/null 2>&1"


def _probing(context: BreachContext, command: str) -> str:
    guest = _victim(context)
    return f"virsh -q qemu-monitor-command --hmp {guest.domain} {shlex.quote(command)}"


def _secret_of(context: BreachContext) -> str:
    """Return libvirt's name for the key of the victim's first volume, in QEMU; disks are named last first."""
    return f"libvirt-{len(_victim(context).volumes)}-format-encryption-secret0"


def _foreign_image(root: ET.Element) -> None:
    devices = root.find("devices")
    assert devices is not None
    add_disk(devices, _LODGERS, "vda", "qcow2")


_LODGERS, _BASE = f"{POOLS}/{NAME}.qcow2", f"{POOLS}/{NAME}.base.raw"


def _of_lodger() -> Breach:
    breach = lodger_breach(
        "libvirt opens an image with a chain of its own",
        _foreign_image,
        afterwards=f"rm -f {_LODGERS} {_BASE}",
    )

    def open_(context: BreachContext) -> None:
        context.host.must(
            f"truncate -s 1M {_BASE} && chmod 0644 {_BASE} && "
            f"qemu-img create -q -f qcow2 -F raw -b {_BASE} {_LODGERS} 1M"
        )
        breach.open(context)

    return replace(breach, open=open_)


@check(
    id="STO-02",
    objective="The format of each image is declared; no program of a node finds it out from a guest's data",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        *where(
            _has_volume,
            shell_breach(
                "libvirt has a storage pool over the volumes of a tenant",
                opens=lambda context: f"virsh -q pool-create-as {NAME} dir --target {_victim(context).pool}",
                closes=_unpool,
                shows=lambda _: f"virsh -q pool-info {NAME}",
            ),
            shell_breach(
                "QEMU opens a volume without knowing its format",
                opens=lambda context: _probing(
                    context,
                    f"drive_add 0 if=none,id={NAME},file.driver=luks,file.key-secret={_secret_of(context)},"
                    f"file.file.driver=file,file.file.filename={_victim(context).disks[1]},"
                    "file.file.locking=off,read-only=on",
                ),
                closes=lambda context: f"{_probing(context, f'drive_del {NAME}')}; true",
                shows=lambda context: f"{_probing(context, 'info block')} | grep -q ^{NAME}",
            ),
        ),
        _of_lodger(),
    ),
)
def test_formats_are_declared(fleet: Fleet, node: MachineView) -> None:
    guests = fleet.topology.guests_on(node.name)
    wanted = {guest.domain: guest_xml(fleet.topology, guest, {}) for guest in guests}
    known = {guest.domain for guest in guests}
    with judging(f"the images on {node.name}"):
        faults, views = [], observe.domains(fleet, node)
        for view in views:
            ours = wanted.get(view.name, "<domain/>")
            found = images.described(ours, view.xml)
            if view.name in known or found:
                found += images.opened(ours, view.answers["disks"], view.answers["images"])
            faults += [f"{view.name}: {text}" for text in found]
        faults += _attacked(
            fleet, node, [guest for guest in guests if guest.volumes], {view.name: view.xml for view in views}
        )
        for view in observe.domains_again(fleet, node):
            if view.name in known:
                found = images.opened(wanted[view.name], view.answers["disks"], view.answers["images"])
                faults += [f"{view.name}, after the attack: {text}" for text in found]
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"


def _attacked(fleet: Fleet, node: MachineView, guests: list[Guest], xml: Mapping[str, str]) -> list[str]:
    """Return which tools of a node believe the headers that all of its guests write at once.

    Args:
        guests: those with volumes.
        xml: the live XML of each domain.
    """
    if not guests:
        return []
    named = f"/run/{uuid4()}"
    volumes = {guest.disks[1]: guest for guest in guests}
    sizes = {path: guest.volumes[0].size for path, guest in volumes.items()}
    keys = {guest: fleet.volume_key(guest).decode() for guest in guests}
    request = {
        "named": named,
        "volumes": [
            [guest.domain, guest.uuid, "vdb", path, str(sizes[path]), xml[guest.domain], keys[guest]]
            for path, guest in volumes.items()
        ],
    }
    with overwritten(fleet, guests, lambda guest: images.hostile_header(named, guest.volumes[0].size)):
        answer = node.python(_PROGRAM.read_text(), request, _TIMEOUT, function="collect")
    return images.probed(answer, named, list(volumes), sizes)
