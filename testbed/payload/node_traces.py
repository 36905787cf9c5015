"""Reads what an attack could leave in a root partition: processes, sockets, modules, files, kernel reports.

It runs as root on a node, before an attack and after it: one file, standard library only. It reads faster
than an inventory, and only what a moment can change.
"""

from __future__ import annotations

import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TREES = ("/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/var", "/boot", "/dev")
_TABLES = ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet")
_LISTENS = "0A"  # state of a TCP socket
_WARNING = 4  # level of a report of the kernel (dmesg(1))
_PATH, _REPORT, _MOST = 300, 200, 2000  # characters of a path and of a report; entries of an answer

Facts = dict[str, object]


def collect(request: dict[str, object]) -> Facts:
    """Return the state of the node, and what changed since a moment.

    Args:
        request: ``since``: seconds of the node's clock; files that have changed since are listed, none if 0;
            ``skipped``: folders that are not entered.
    """
    since = float(str(request["since"]))
    skipped = frozenset(map(str, request["skipped"]))  # type: ignore[call-overload]
    return {
        "now": time.time(),
        "processes": sorted(_processes())[:_MOST],
        "sockets": sorted(set(_sockets()))[:_MOST],
        "modules": sorted(line.split(" ", 1)[0] for line in _lines("/proc/modules")),
        "mounts": sorted({line.split(" ")[4][:_PATH] for line in _lines("/proc/self/mountinfo")}),
        "tainted": int(_lines("/proc/sys/kernel/tainted")[0]),
        "reports": list(_reports())[-_MOST:],
        "files": sorted(_changed(since, skipped))[:_MOST] if since else [],
    }


def _processes() -> Iterator[tuple[int, int, str, str, int]]:
    """Yield each process of user space: id, start in clock ticks, program, control group and account."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            program = os.readlink(f"/proc/{entry}/exe")
            start = int(_lines(f"/proc/{entry}/stat")[0].rsplit(")", 1)[1].split()[19])
            group = _lines(f"/proc/{entry}/cgroup")[0].split(":", 2)[2]
            account = os.stat(f"/proc/{entry}").st_uid
        except (OSError, IndexError):  # a thread of the kernel, or it has ended
            continue
        yield int(entry), start, program[:_PATH], group[:_PATH], account


def _sockets() -> Iterator[tuple[str, str]]:
    """Yield protocol and address of each socket that receives without a connection."""
    for name in _TABLES:
        for line in _lines(f"/proc/net/{name}")[1:]:
            fields = line.split()
            if name == "packet":
                yield name, f"{fields[3]} on {fields[4]}"
            elif not name.startswith("tcp") or fields[3] == _LISTENS:
                yield name, fields[1]
    for line in _lines("/proc/net/unix")[1:]:
        fields = line.split(None, 7)
        if int(fields[3], 16) & 0x10000 and len(fields) > 7:  # SO_ACCEPTCON
            yield "unix", fields[7][:_PATH]


def _reports() -> Iterator[tuple[int, str]]:
    """Yield number and text of each report of the kernel that is a warning, or worse."""
    file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(file, 8192).decode(errors="replace")
            except BrokenPipeError:  # it was overwritten meanwhile
                continue
            except BlockingIOError:
                return
            head, _, text = record.partition(";")
            level, number = head.split(",")[:2]
            if int(level) & 7 <= _WARNING:
                yield int(number), text.split("\n", 1)[0][:_REPORT]
    finally:
        os.close(file)


def _changed(since: float, skipped: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield kind and path of whatever has an inode that changed since a moment, of the kernel's own clock."""
    for tree in _TREES:
        pending = [tree] if not os.path.islink(tree) else []
        while pending:
            folder = pending.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            for entry in entries:
                if entry.path in skipped:
                    continue
                try:
                    facts = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISDIR(facts.st_mode):
                    pending.append(entry.path)
                elif facts.st_ctime >= since:
                    yield _kind(facts.st_mode), entry.path[:_PATH]


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISREG, "file"),
        (stat.S_ISLNK, "link"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISFIFO, "pipe"),
    )
    return next((name for matches, name in kinds if matches(mode)), "device")


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()
