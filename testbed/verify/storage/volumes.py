"""Rules about volumes: a node does not read or interpret what guests write into them (STO-08). Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from testbed.hosts.rules import UnseenError
from testbed.untrusted.answers import formed
from testbed.untrusted.text import line

_STACKED = ("dm-", "md", "nbd")  # names of devices that are built over others
_Text = Annotated[str, Field(max_length=4096)]


class Reader(NamedTuple):
    """A process that has something in the folder of volumes open, or mapped."""

    pid: int
    program: _Text
    path: _Text


class Device(NamedTuple):
    """A block device.

    Args:
        below: the file or device that it lies over; empty for a device of the machine.
        size: octets.
    """

    name: _Text
    below: _Text
    size: int


class Mount(NamedTuple):
    """A mount in some mount namespace."""

    kind: _Text
    source: _Text
    place: _Text


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class State:
    """What a node makes of block devices; a link is the name that udev has given one, and the device."""

    readers: tuple[Reader, ...]
    devices: tuple[Device, ...]
    links: tuple[tuple[_Text, _Text], ...]
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Rescan:
    """The answer of `testbed.payload.volume_readers`.

    Args:
        scan: exit status of the rescan.
        reader: process id of the program that has read all this.
    """

    before: State
    after: State
    scan: int
    reader: int


_ANSWER = TypeAdapter(Rescan)


def interpreted(answer: object, workers: Collection[int]) -> list[str]:
    """Return what a node has made of volumes, before and after it scanned its devices once more.

    Args:
        answer: of `testbed.payload.volume_readers`.
        workers: process ids, which may read volumes; whose, is DEV-02's concern.

    Raises:
        UnseenError: the answer is not complete, or the rescan failed.
    """
    try:
        found = formed(_ANSWER, answer)
    except ValueError as error:
        raise UnseenError(str(error)) from error
    if found.scan:
        raise UnseenError(f"the rescan ended with status {found.scan}")
    if any(
        found.reader not in {reader.pid for reader in state.readers} for state in (found.before, found.after)
    ):
        raise UnseenError("the program does not find itself among the readers of volumes")
    return [
        *sorted(
            {text for state in (found.before, found.after) for text in _read(state, found.reader, workers)}
        ),
        *_appeared(found.before, found.after),
    ]


def _read(state: State, own: int, workers: Collection[int]) -> list[str]:
    faults = [
        f"{line(reader.program)} ({reader.pid}) reads {line(reader.path)}"
        for reader in state.readers
        if reader.pid != own and reader.pid not in workers
    ]
    for device in state.devices:
        if device.size and (device.below or device.name.startswith(_STACKED)):
            faults.append(f"{line(device.name)} lies over {line(device.below) or 'another device'}")
    return faults


def _appeared(before: State, after: State) -> list[str]:
    """Return what the rescan has brought."""
    devices = {device.name for device in before.devices}
    return [
        *(
            f"{line(device.name)} appeared with the rescan"
            for device in after.devices
            if device.size and device.name not in devices
        ),
        *(
            f"{line(name)} points to {line(target)} since the rescan"
            for name, target in sorted(set(after.links) - set(before.links))
        ),
        *(
            f"{line(mount.source)} is mounted at {line(mount.place)} since the rescan"
            for mount in sorted(set(after.mounts) - set(before.mounts))
            if mount.source.startswith("/")
        ),
    ]
