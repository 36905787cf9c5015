"""Lets a node scan its block devices once more, and sees whether it reads the volumes of guests.

It runs as root on a node: one file, standard library only.
"""

from __future__ import annotations

import os
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TIMEOUT = 60.0  # seconds for a program
_PATH = 300  # characters of a path
_BLOCKS = "/sys/class/block"
_LINKS = "/dev/disk"

Facts = dict[str, object]


def collect(request: dict[str, object]) -> Facts:
    """Return what is over volumes before and after a rescan.

    Args:
        request: ``pools``, the folder of all volumes.
    """
    pools = str(request["pools"])
    if not os.path.ismount(pools):
        raise ValueError(f"{pools} is no file system of its own, so its readers are not known")
    before = _state(pools)
    done = subprocess.run(
        ("udevadm", "trigger", "--subsystem-match=block", "--action=change", "--settle"),
        capture_output=True, check=False, timeout=_TIMEOUT,
    )  # fmt: skip
    after = _state(pools)
    return {"before": before, "after": after, "scan": done.returncode, "reader": os.getpid()}


def _state(pools: str) -> Facts:
    """Return readers of volumes, block devices, links to them, and mounts.

    This program opens their folder: it must be among the readers.
    """
    opened = os.open(pools, os.O_RDONLY)
    try:
        return {
            "readers": sorted(_readers(os.stat(pools).st_dev, filter(str.isdigit, os.listdir("/proc")))),
            "devices": sorted(_devices()),
            "links": sorted(_links()),
            "mounts": sorted(_mounts()),
        }
    finally:
        os.close(opened)


def _readers(device: int, processes: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """Yield each process that has something of a file system open or mapped: its id, program and path."""
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}"
    for entry in processes:
        folder, found = f"/proc/{entry}", set()
        try:
            with open(f"{folder}/comm", encoding="utf-8", errors="replace") as text:
                name = text.read().strip()
            for number in os.listdir(f"{folder}/fd"):
                place = f"{folder}/fd/{number}"
                try:
                    if os.stat(place).st_dev == device:
                        found.add(os.readlink(place))
                except OSError:  # closed meanwhile, or of a file system that does not answer
                    continue
            with open(f"{folder}/maps", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    fields = line.split(None, 5)
                    if fields[3] == wanted:
                        found.add(fields[5].strip() if len(fields) > 5 else "")
        except (FileNotFoundError, ProcessLookupError):
            pass
        for path in found:
            yield int(entry), name, path[:_PATH]


def _devices() -> Iterator[tuple[str, str, int]]:
    """Yield each block device: its name, the file or device behind it, and its size in octets.

    What is behind a device of the machine is the empty string.
    """
    for name in os.listdir(_BLOCKS):
        folder = f"{_BLOCKS}/{name}"
        size = int(_text(f"{folder}/size") or "0") * 512
        below = _text(f"{folder}/loop/backing_file") or _text(f"{folder}/backing_file")
        if os.path.isdir(f"{folder}/slaves"):
            below = below or " ".join(sorted(os.listdir(f"{folder}/slaves")))
        if os.path.exists(f"{folder}/partition"):
            below = below or f"a partition {_text(f'{folder}/partition')}"
        yield name, below[:_PATH], size


def _links() -> Iterator[tuple[str, str]]:
    """Yield the names that udev has given devices, and the devices."""
    for folder, _, names in os.walk(_LINKS):
        for name in names:
            yield f"{folder}/{name}"[:_PATH], os.path.realpath(f"{folder}/{name}")[:_PATH]


def _mounts() -> Iterator[tuple[str, str, str]]:
    """Yield each mount in any mount namespace: file system, source and place."""
    seen = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                own = os.readlink(f"/proc/{entry}/ns/mnt")
                if own in seen:
                    continue
                text = _text(f"/proc/{entry}/mountinfo")
            except OSError:
                continue
            seen.add(own)
            for line in text.splitlines():
                left, _, right = line.partition(" - ")
                kind, source = right.split(" ")[:2]
                yield kind, source[:_PATH], left.split(" ")[4][:_PATH]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
