"""What a lab adds to a machine's golden reading with values that the tool knows. Pure."""

from __future__ import annotations

import hashlib
import hmac
import io
import re
import tarfile
from dataclasses import dataclass
from typing import Any

from testbed.inventory.records import UNREAD, Records
from testbed.inventory.reference.network import network, settings
from testbed.inventory.reference.processes import peculiar
from testbed.model.topology import Machine, Topology

_WATCHES = "/run/udev/watch/"
_WATCHED = re.compile(rf"{_WATCHES}[bc]\d+:\d+")  # udev's name of a device
# File systems in memory: all files there are recorded, so a folder's digest of names says nothing more.
_IN_MEMORY = ("/dev", "/run", "/tmp", "/sys")  # noqa: S108 - places to look at, none to write


@dataclass(frozen=True, slots=True)
class Origin:
    """What a machine was made from.

    Args:
        identity: the archive (tar) that was handed over.
        key: for digests of private files (hexadecimal).

    """

    topology: Topology
    machine: Machine
    identity: bytes
    key: str


def normal(records: Records) -> dict[tuple[str, str], Any]:
    """Return records without what other records say more exactly, and without numbers that have no meaning.

    udev watches block devices: two links name each other, one after the device and one after the number of
    the watch (inotify(7)), which is another one after each event of the device.
    """
    found = {
        (domain, key): {name: item for name, item in value.items() if name != "entries"}
        if domain == "file" and in_memory(key) and isinstance(value, dict)
        else value
        for (domain, key), value in records.items()
        if domain != "process"
    }
    processes = {key: value for (domain, key), value in records.items() if domain == "process"}
    found |= {("process", key): value for key, value in peculiar(processes).items()}
    for at, value in list(found.items()):
        number = value.get("to", "") if at[0] == "file" and _WATCHED.fullmatch(at[1]) else ""
        back = ("file", f"{_WATCHES}{number}")
        if isinstance(number, str) and number.isdecimal() and back in found:
            device = at[1].removeprefix(_WATCHES)
            if found[back] == {**value, "to": device}:
                del found[back]
                found[at] = {**value, "to": "its watch"}
    return found


def unchanged(found: Records, golden: Records) -> dict[tuple[str, str], Any]:
    """Return records without folders and programs that are as in the image, though their inode is newer.

    Args:
        golden: with records of the domain "image file".

    """
    return {
        (domain, key): value
        for (domain, key), value in found.items()
        if domain != "file" or not _is_as_before(value, golden.get(("image file", key)))
    }


def _is_as_before(value: Any, before: Any) -> bool:  # noqa: ANN401 - JSON
    """Return whether a folder or program holds what it held in the image; unknown content is another."""
    if not isinstance(value, dict) or before is None or "unread" in value:
        return False
    return bool(before == {**value, "newer": False})


def in_memory(path: str) -> bool:
    """Return whether a path is on a file system in memory, which a boot makes empty."""
    return any(path == place or path.startswith(f"{place}/") for place in _IN_MEMORY)


def derived(origin: Origin, golden: Records, found: Records) -> dict[tuple[str, str], Any]:
    """Return what should be on a machine, as far as the tool knows values.

    Args:
        found: what is there; settings that the kernel brings along are only asked for if they are there, and
            processes too: that a service does not run is told by its unit, and programs end.

    """
    topology, machine = origin.topology, origin.machine
    names = [line for line in _file(origin, "testbed/hosts").decode().splitlines() if line]
    # libvirt does not run before a machine has its identity, so that its objects cannot be asked for then.
    gap = (UNREAD, "guests ")
    before = {at: value for at, value in golden.items() if at in found or (at != gap and at[0] != "process")}
    return {
        **before,
        **_identity(origin),
        ("access file", "/etc/hosts"): names,
        **network(topology, machine),
        **settings(topology, machine, golden, found),
    }


def _file(origin: Origin, path: str) -> bytes:
    """Return the content of a file of the identity."""
    with tarfile.open(fileobj=io.BytesIO(origin.identity)) as archive:
        file = archive.extractfile(path)
        return file.read() if file else b""


def _identity(origin: Origin) -> dict[tuple[str, str], Any]:
    """Return the files that were handed over, as a machine unpacks them below /run."""
    found: dict[tuple[str, str], Any] = {}
    with tarfile.open(fileobj=io.BytesIO(origin.identity)) as archive:
        for entry in archive.getmembers():
            told: dict[str, object] = {"mode": f"{entry.mode:04o}", "owner": "0:0", "newer": True}
            if entry.isdir():
                found["file", f"/run/{entry.name}"] = {**told, "type": "folder"}
                continue
            file = archive.extractfile(entry)
            content = file.read() if file else b""
            found["file", f"/run/{entry.name}"] = {
                **told,
                "type": "file",
                "size": len(content),
                "names": 1,
                **_digest(content, origin.key, public=bool(entry.mode & 0o004)),
            }
    return found


def _digest(content: bytes, key: str, *, public: bool) -> dict[str, str]:
    """Return the digest of a file as `testbed.payload.inventory.host.files` makes it."""
    if public:
        return {"sha256": hashlib.sha256(content).hexdigest()}
    return {"keyed sha256": hmac.new(bytes.fromhex(key), content, "sha256").hexdigest()}
