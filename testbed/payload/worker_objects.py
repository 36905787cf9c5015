"""Reads what the workers of a node hold: open objects, mapped objects, and frames of physical memory.

It runs as root on nodes: one file, standard library only. A worker that ends meanwhile is left out. The
frames that two processes have in common are compared here, since their numbers are secrets of the node.
"""

from __future__ import annotations

import array
import mmap
import os
import re
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PAGE = mmap.PAGESIZE
_ENTRY = 8  # octets of an entry of pagemap, kpageflags (kernel documentation, pagemap)
_PRESENT, _OF_FILE, _FRAME = 1 << 63, 1 << 61, (1 << 55) - 1  # bits of an entry of pagemap
_ZERO, _MERGED = 1 << 24, 1 << 21  # bits of kpageflags: the page of zeros, and one that KSM has merged
_CHUNK = 1 << 16  # entries that are read at once
_MOST = 1 << 22  # frames of one process: 16 GiB
_AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)")
_OF_THE_KERNEL = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")  # every process has them
_TUN, _PTMX = (10, 200), (5, 2)  # numbers of devices (Linux, admin-guide/devices.txt)
_PATH = 300  # characters of a path
_CONTROL = 16  # pages that the control shares

Facts = dict[str, object]
Area = tuple[int, int, str, str, str]


def collect(request: dict[str, object]) -> Facts:
    """Return what each worker holds, and which frames two of them have in common.

    Args:
        request: ``workers``: process ids by name.
    """
    held: dict[str, Facts] = {}
    frames: dict[str, set[int]] = {}
    for name, pid in request["workers"].items():  # type: ignore[attr-defined]
        try:
            areas = list(_areas(pid))
            held[name] = {
                "objects": sorted(_objects(pid)),
                "mapped": sorted({_mapped(pid, area) for area in areas if area[3]}),
                "anonymous": _anonymous(pid),
            }
            frames[name], held[name]["pages"] = _frames(pid, areas)
        except (FileNotFoundError, ProcessLookupError):
            held.pop(name, None)
    return {"workers": held, "common": _common(frames), "control": _control()}


def _areas(pid: int) -> Iterator[Area]:
    """Yield each area of a process: begin, end, permissions, object (empty if it has none), and path."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = _AREA.match(line)
            if found is None:
                raise ValueError(f"/proc/{pid}/maps: {line[:80]!r}")
            begin, end, permissions, major, minor, inode, path = found.groups()
            identity = f"{int(major, 16)}:{int(minor, 16)}:{inode}" if inode != "0" else ""
            yield int(begin, 16), int(end, 16), permissions, identity, path.strip()[:_PATH]


def _mapped(pid: int, area: Area) -> tuple[str, str, str, bool]:
    """Return permissions, object and path of a mapping, and whether the object is fixed."""
    begin, end, permissions, identity, path = area
    try:
        facts = os.stat(f"/proc/{pid}/map_files/{begin:x}-{end:x}")
    except OSError:  # one without a file, as those of KVM
        return permissions, identity, path, False
    return permissions, identity, path, _is_fixed(path, facts)


def _is_fixed(path: str, facts: os.stat_result) -> bool:
    """Return whether only root can change an object, which has this name in the node's own files."""
    try:
        own = os.stat(path, follow_symlinks=False)
    except (OSError, ValueError):
        return False
    same = (own.st_dev, own.st_ino) == (facts.st_dev, facts.st_ino)
    return same and own.st_uid == 0 and not own.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _objects(pid: int) -> Iterator[tuple[str, str, str, str, bool]]:
    """Yield each open object of a process: kind, identity, access, path, and whether it is fixed.

    Objects that have no inode of their own (anon_inode) are left out.
    """
    for number in os.listdir(f"/proc/{pid}/fd"):
        place = f"/proc/{pid}/fd/{number}"
        try:
            path, facts = os.readlink(place), os.stat(place)
            with open(f"/proc/{pid}/fdinfo/{number}", encoding="utf-8", errors="replace") as text:
                fields = dict(line.split(":", 1) for line in text.read(4096).splitlines() if ":" in line)
        except FileNotFoundError:  # closed meanwhile
            continue
        if path.startswith("anon_inode:"):
            continue
        access = "write" if int(fields.get("flags", "2").strip(), 8) & os.O_ACCMODE else "read"
        kind, identity = _identified(facts, {name: value.strip() for name, value in fields.items()})
        yield kind, identity, access, path[:_PATH], _is_fixed(path, facts)


def _identified(facts: os.stat_result, fields: dict[str, str]) -> tuple[str, str]:
    """Return kind and identity of an object; what is behind a device of many is named by the kernel."""
    mode, device = facts.st_mode, (os.major(facts.st_rdev), os.minor(facts.st_rdev))
    own = f"{os.major(facts.st_dev)}:{os.minor(facts.st_dev)}:{facts.st_ino}"
    if stat.S_ISCHR(mode):
        if device == _TUN and "iff" in fields:
            return "interface", fields["iff"][:_PATH]
        if device == _PTMX and "tty-index" in fields:
            return "terminal", fields["tty-index"][:_PATH]
        return "device", f"{device[0]}:{device[1]}"
    if stat.S_ISBLK(mode):
        return "block device", f"{device[0]}:{device[1]}"
    kinds = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISDIR, "folder"))
    return next((name for matches, name in kinds if matches(mode)), "file"), own


def _anonymous(pid: int) -> int:
    """Return the resident octets of a process that belong to no file."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def _frames(pid: int, areas: Sequence[Area]) -> tuple[set[int], int]:
    """Return the frames behind what a process has written or may write, and the number of pages seen.

    What it has only read of files belongs to the node: programs and libraries. Merged pages have one frame.

    Raises:
        ValueError: it has more frames than can be compared.
    """
    found: set[int] = set()
    pages = 0
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for begin, end, permissions, identity, path in areas:
            if path in _OF_THE_KERNEL or permissions.startswith("---"):
                continue
            # A page of such an area is the file's own, until it is written and copied.
            unwritten = bool(identity) and permissions[1::2] != "ws"
            for first in range(begin // _PAGE, end // _PAGE, _CHUNK):
                count = min(_CHUNK, end // _PAGE - first)
                entries = array.array("Q", os.pread(pagemap.fileno(), count * _ENTRY, first * _ENTRY))
                numbers = [
                    entry & _FRAME
                    for entry in entries
                    if entry & _PRESENT and not (unwritten and entry & _OF_FILE)
                ]
                pages += len(numbers)
                found.update(numbers)
            if len(found) > _MOST:
                raise ValueError(f"process {pid} has more than {_MOST} frames")
    return found, pages


def _common(frames: dict[str, set[int]]) -> list[tuple[str, str, int, int]]:
    """Return each two processes that have frames in common, how many, and how many KSM has merged.

    The kernel's page of zeros, which no process can write, is none of them.
    """
    zeros: set[int] = set()
    merged: set[int] = set()
    seen: set[int] = set()
    twice: set[int] = set()
    for numbers in frames.values():
        twice |= seen & numbers
        seen |= numbers
    with open("/proc/kpageflags", "rb", buffering=0) as kinds:
        for number in twice:
            flags = int.from_bytes(os.pread(kinds.fileno(), _ENTRY, number * _ENTRY), "little")
            (zeros if flags & _ZERO else merged if flags & _MERGED else set()).add(number)
    shared = {name: numbers & twice - zeros for name, numbers in frames.items()}
    return [
        (one, other, len(shared[one] & shared[other]), len(shared[one] & shared[other] & merged))
        for one in shared
        for other in shared
        if one < other and shared[one] & shared[other]
    ]


def _control() -> int:
    """Return how many frames this program and its child have in common: some, if frames are seen at all."""
    with mmap.mmap(-1, _CONTROL * _PAGE) as room:
        for page in range(_CONTROL):
            room[page * _PAGE] = 1
        ready, report = os.pipe()
        waiting, end = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(end)
                os.write(report, bytes(room[page * _PAGE] for page in range(_CONTROL)))
                os.read(waiting, 1)
            finally:
                os._exit(0)
        try:
            os.read(ready, _CONTROL)
            frames = {
                str(pid): _frames(pid, [area for area in _areas(pid) if area[4].startswith("/dev/zero")])[0]
                for pid in (os.getpid(), child)
            }
        finally:
            for number in (report, end, ready, waiting):
                os.close(number)
            os.waitpid(child, 0)
    return sum(count for _, _, count, _ in _common(frames))
