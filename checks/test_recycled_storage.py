"""Volumes and root disks of a guest that is removed, as their node and the next guests find them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from checks.support.breaches import needs_room
from checks.support.judging import judging
from checks.support.storage_breaches import BREACHES
from testbed.hosts.rules import UnseenError
from testbed.model import subjects
from testbed.model.topology import ENCRYPTED, LUKS_HEADER, POOLS, Guest, Volume
from testbed.payload import residues
from testbed.untrusted import bounded_json
from testbed.verify.attackers.departing_guest import Passing, guest_like
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.storage import recycled

_ON_NODE, _IN_GUEST = (
    (Path(residues.__file__).parent / name).read_text() for name in ("pool_residues.py", "guest_canaries.py")
)
_SEARCH, _PATIENCE = 200.0, 240.0  # seconds for a search, and for the program that makes it
_MIB = 1 << 20
_FIRST, _GROWN = 8 * _MIB, 12 * _MIB  # sizes of the volume
_WRITTEN = 256 << 10  # octets of each region or file
_CANARY = 32  # octets, repeated
# A search reads whole disks, which the limits of a usual guest make slow; these are for throw-away guests.
_OPERATIONS, _BANDWIDTH = 5000, 64 * _MIB  # per second
_ROOT, _ROOT_TRIMMED = "the canary of the root disk", "the canary of a discarded file of the root disk"
_VOLUME, _TRIMMED, _LATER = (
    "the canary of the volume",
    "the canary of a discarded part of the volume",
    "the canary of the part by which the volume has grown",
)
_FILE = "/testbed.canary"
_SHOWN = 6


@check(
    id="STO-04",
    objective="Storage that is used again has nothing of its former owner, and no removed container opens",
    severity="critical",
    effect=Effect.DISTURBS,
    local=True,
    applies=needs_room,
    breaches=BREACHES,
)
def test_recycled_storage_is_clean(fleet: Fleet, first_host: MachineView) -> None:
    node = first_host
    faults = _at_rest(fleet, node)
    assert not faults, f"{len(faults)} faults at rest: {'; '.join(faults[:_SHOWN])}"
    texts = {name: secrets.token_hex(_CANARY) for name in (_ROOT, _ROOT_TRIMMED, _VOLUME, _TRIMMED, _LATER)}
    model = fleet.topology.guests_on(node.name)[0]
    with judging(f"the storage of {node.name}"):
        faults = _removed(fleet, model, texts)
        assert not faults, f"after the removal: {'; '.join(faults[:_SHOWN])}"
        for owner in (model, *(subjects.strangers(fleet.topology, node.name) or ())[1:]):
            faults = _next(fleet, owner, texts)
            assert not faults, f"a new guest of {owner.tenant}: {'; '.join(faults[:_SHOWN])}"


def _at_rest(fleet: Fleet, node: MachineView) -> list[str]:
    """Return what would keep blocks of the node's guests beyond the overwriting of their files."""
    mount = bounded_json.read(node.read(f"findmnt --json -o TARGET,FSTYPE,OPTIONS --mountpoint {POOLS}"))
    listed = node.read(f"find {POOLS} -xdev -path {POOLS}/lost+found -prune -o -type f -printf '%n %p\\0'")
    guests = fleet.topology.guests_on(node.name)
    with judging(f"the volumes of {node.name}"):
        faults = recycled.overwritten_in_place(mount)
        faults += recycled.undeclared(filter(None, listed.split("\0")), guests)
        for name, xml, disks in _domains(fleet, node):
            faults += recycled.kept_whole(name, xml, disks)
    return faults


def _domains(fleet: Fleet, node: MachineView) -> list[tuple[str, str, object]]:
    """Return the name of each domain of a node, its live XML, and what its QEMU has open as disks."""
    hypervisor, started = fleet.lab.nodes[node.name].hypervisor, time.time()
    found: list[tuple[str, str, object]] = [
        (domain.name, domain.xml, hypervisor.ask_monitor(domain.name, "query-block", {}))
        for domain in hypervisor.domains()
    ]
    fleet.evidence.record(node.name, "devices", "XML and disks of each domain", found, started)
    missing = {guest.domain for guest in fleet.topology.guests_on(node.name)} - {name for name, *_ in found}
    if missing:
        raise UnseenError(f"libvirt does not know {', '.join(sorted(missing))}")
    return found


def _removed(fleet: Fleet, model: Guest, texts: Mapping[str, str]) -> list[str]:
    """Let a guest write texts, remove it, and return what its node's device has of it.

    Raises:
        UnseenError: the search does not find the texts while the guest is there.
    """
    former = Passing(fleet, _throw_away(fleet, model, _FIRST))
    node, faults = former.node, []
    with fleet.leavings.made(f"the guest {former.guest.domain} on {node.name}", former.leave):
        former.arrive()
        container = {"file": former.guest.disks[1]}
        keys = recycled.identity(node.python(_ON_NODE, container, function="container"))
        regions = [[0, _WRITTEN, texts[_VOLUME], False], [_FIRST // 2, _WRITTEN, texts[_TRIMMED], True]]
        files = [[_FILE, _WRITTEN, texts[_ROOT], False], [f"{_FILE}.2", _WRITTEN, texts[_ROOT_TRIMMED], True]]
        seen = _written(fleet, former.guest, texts, regions, files)
        recycled.require_found(seen.found, [_VOLUME], former.guest.label)
        recycled.require_found(seen.files, [_FILE, f"{_FILE}.2"], former.guest.label)
        if not seen.found[_TRIMMED]:
            faults.append("blocks that a guest discards leave its volume before they are overwritten")
        former.grow(_GROWN)
        seen = _written(fleet, former.guest, texts, [[_FIRST, _WRITTEN, texts[_LATER], False]], [])
        recycled.require_found(seen.found, [_VOLUME, _LATER], former.guest.label)
        sought = {**texts, **{f"{name} of its container": text for name, text in keys.items()}}
        known = [name for name in sought if name not in (_VOLUME, _TRIMMED, _LATER)]
        alive = _searched(node, sought, known)
        recycled.require_found(alive.found, known, node.name)
        former.leave()
    return faults + recycled.left(_searched(node, sought, ()))


def _next(fleet: Fleet, owner: Guest, texts: Mapping[str, str]) -> list[str]:
    """Return what a new guest gets of the texts, or finds in its disks otherwise.

    Args:
        owner: a guest of its tenant.

    Raises:
        UnseenError: its disks cannot be read whole.
    """
    later = Passing(fleet, _throw_away(fleet, owner, _GROWN))
    guest = later.guest
    with fleet.leavings.made(f"the guest {guest.domain} on {later.node.name}", later.leave):
        later.arrive()
        request = {"files": {guest.root_disk: 0, guest.disks[1]: LUKS_HEADER}, "texts": {**texts}}
        faults = recycled.handed_out(later.node.python(_ON_NODE, request, _PATIENCE, function="files"), guest)
        seen = _asked(fleet, guest, texts, "search", {})
        later.leave()
    return faults + [f"it reads {name} in its volume" for name, count in seen.found.items() if count]


def _throw_away(fleet: Fleet, model: Guest, size: int) -> Guest:
    """Return a guest with a volume of a size in bytes, of the tenant of another guest."""
    guest = guest_like(fleet.topology, model)
    limits = replace(guest.limits, disk_operations=_OPERATIONS, disk_bandwidth=_BANDWIDTH)
    return replace(guest, volumes=(Volume("data", size, f"{guest.name}.data{ENCRYPTED}"),), limits=limits)


def _searched(node: MachineView, texts: Mapping[str, str], enough: Iterable[str]) -> recycled.Device:
    request = {"place": POOLS, "texts": {**texts}, "enough": [*enough], "seconds": _SEARCH}
    return recycled.of_device(node.python(_ON_NODE, request, _PATIENCE, function="search"), texts)


def _written(
    fleet: Fleet,
    guest: Guest,
    texts: Mapping[str, str],
    regions: list[list[object]],
    files: list[list[object]],
) -> recycled.Disk:
    return _asked(fleet, guest, texts, "write", {"regions": regions, "files": files})


def _asked(
    fleet: Fleet, guest: Guest, texts: Mapping[str, str], function: str, request: dict[str, object]
) -> recycled.Disk:
    """Run a program in a guest that reads its volume whole; return what it has found."""
    whole = {"device": "/dev/vdb", "texts": {**texts}, **request}
    program = f"{_IN_GUEST}\nimport json\nprint(json.dumps({function}({whole!r})))\n"
    output = fleet.in_guest(guest, ["/usr/bin/python3", "-IS", "-"], program.encode(), _PATIENCE)
    try:
        answer = bounded_json.read(output)
    except ValueError as error:
        raise UnseenError(f"{guest.label} answers garbage: {error}") from error
    return recycled.of_disk(guest.label, answer, guest.volumes[0].size, texts)
