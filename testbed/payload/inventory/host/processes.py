"""Processes with their accounts, rights, namespaces and open files; kernel threads."""

from __future__ import annotations

import os
import re

from testbed.payload.inventory.base.collect import Records, Unread, masked, read

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, linux/sched.h
NUMBERS = re.compile(
    r"(?<=session-)\d+(?=\.scope)|(?<=machine-qemu\\x2d)\d+|(?<=run-u)\d+|(?<=run-r)[0-9a-f]{32}|(?<=@)\d+-\d+-\d+"
)
_THREAD_NUMBERS = re.compile(r"\d+")
_FIELDS = {
    "CapInh": "inheritable",
    "CapPrm": "permitted",
    "CapEff": "effective",
    "CapBnd": "bounding",
    "CapAmb": "ambient",
    "NoNewPrivs": "no new privileges",
    "Seccomp": "seccomp",
    "Groups": "groups",
    "Uid": "uids",
    "Gid": "gids",
}
_PRIVATE_SYSTEM = ("/usr/", "/lib/", "/lib64/", "/bin/", "/sbin/")
KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


class Process:
    """A process as /proc shows it.

    Attributes:
        namespaces: identity of each, by kind.
        sockets: inodes of its sockets.
        held: namespaces that it holds open without being in them.

    """

    def __init__(self, pid: int, parent: int, session: int, name: str, *, kernel: bool) -> None:
        self.pid, self.parent, self.session = pid, parent, session
        self.name, self.kernel = name, kernel
        self.exe = self.cgroup = self.trouble = ""
        self.namespaces: dict[str, str] = {}
        self.sockets: set[str] = set()
        self.files: set[str] = set()
        self.held: dict[str, str] = {}

    @property
    def label(self) -> str:
        """Name that is the same after a restart: its control group and its program."""
        return f"{self.cgroup} {self.exe or self.name}"


def scan() -> list[Process]:
    """Return each process but those of our own session and their ancestors."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found[int(entry)] = _seen(int(entry))
            except (Unread, OSError, ValueError, IndexError):
                continue  # it has ended meanwhile
    own, at = set(), os.getpid()
    session = os.getsid(0)
    while at > 1 and at in found and not found[at].exe.endswith("/sshd"):
        own.add(at)
        at = found[at].parent
    return [process for process in found.values() if process.pid not in own and process.session != session]


def _seen(pid: int) -> Process:
    stat = read(f"/proc/{pid}/stat")
    name, _, rest = stat.partition(" (")[2].rpartition(") ")
    words = rest.split()
    if words[0] == "Z":
        raise Unread("it has ended, and holds nothing any more")
    kernel = bool(int(words[6]) & _KERNEL_THREAD)
    process = Process(pid, int(words[1]), int(words[3]), name, kernel=kernel)
    if process.kernel:
        return process
    try:
        process.exe = os.readlink(f"/proc/{pid}/exe")
        process.cgroup = NUMBERS.sub(
            "N", read(f"/proc/{pid}/cgroup").rstrip("\n").rpartition("\n")[2].partition("::")[2]
        )
        for kind in KINDS:
            process.namespaces[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
        for number in os.listdir(f"/proc/{pid}/fd"):
            _open_file(process, f"/proc/{pid}/fd/{number}")
    except (OSError, Unread) as error:
        process.trouble = str(error)
    return process


def _open_file(process: Process, path: str) -> None:
    try:
        target = os.readlink(path)
    except OSError:
        return
    kind, _, inode = target.partition(":[")
    if kind == "socket":
        process.sockets.add(inode.rstrip("]"))
    elif kind in KINDS:
        process.held[target] = path
    else:
        process.files.add(
            "a pipe"
            if kind == "pipe"
            else _THREAD_NUMBERS.sub("N", target)
            if target.startswith("/proc/")
            else target
        )


def collect(records: Records, found: list[Process], sockets: dict[str, str], names: dict[str, str]) -> None:
    """Record processes.

    Args:
        sockets: description of each socket by its inode.
        names: name of each namespace by its identity.

    """
    parents = {process.pid: process for process in found}
    for process in found:
        if process.kernel:
            continue
        try:
            records.add(
                "process", process.label, _described(process, parents.get(process.parent), sockets, names)
            )
        except (Unread, OSError) as error:
            if os.path.exists(f"/proc/{process.pid}"):
                records.unread("process", process.label, error)
    for name in sorted(
        {
            _THREAD_NUMBERS.sub("N", item.name.partition("-")[0] if "kworker" in item.name else item.name)
            for item in found
            if item.kernel
        }
    ):
        records.add("kernel thread", name)


def _described(
    process: Process, parent: Process | None, sockets: dict[str, str], names: dict[str, str]
) -> dict[str, object]:
    folder = f"/proc/{process.pid}"
    status = dict(line.split(":", 1) for line in read(f"{folder}/status").splitlines() if ":" in line)
    rights = {name: " ".join(status.get(key, "").split()) for key, name in _FIELDS.items()}
    return {
        **rights,
        "program": process.exe,
        "program is its file": _is_its_file(process),
        "arguments": masked(read(f"{folder}/cmdline", 8192).rstrip("\0").replace("\0", " ")),
        "parent": parent.label if parent else "",
        "profile": _attribute(f"{folder}/attr/current"),
        "root": _link(f"{folder}/root"),
        "namespaces": {
            kind: names.get(mark, mark)
            for kind, mark in process.namespaces.items()
            if names.get(mark) != "first"
        },
        "sockets": sorted({sockets.get(inode, "of an unknown kind") for inode in process.sockets}),
        "files": sorted(process.files),
        "mapped": _mapped(folder),
        "traced": status.get("TracerPid", "0").strip() != "0",
        "trouble": process.trouble,
    }


def _attribute(path: str) -> str:
    try:
        return read(path).rstrip("\n\0")
    except Unread as error:
        return f"unread: {error}"


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        return f"unread: {error.strerror}"


def _is_its_file(process: Process) -> bool:
    """Return whether a process still runs the file that its program's name names."""
    try:
        running, named = (
            os.stat(f"/proc/{process.pid}/exe"),
            os.stat(f"/proc/{process.pid}/root{process.exe}"),
        )
    except OSError:
        return False
    return (running.st_dev, running.st_ino) == (named.st_dev, named.st_ino)


def _mapped(folder: str) -> list[str]:
    """Return executable mappings that are no system file, or are writable too."""
    found = set()
    for line in read(f"{folder}/maps", 2**21).splitlines():
        words = line.split(None, 5)
        place = words[5] if len(words) > 5 else ""
        if "x" not in words[1] or place in ("[vdso]", "[vsyscall]"):
            continue
        if "w" in words[1]:
            found.add(f"writable {place or 'memory'}")
        elif not place.startswith(_PRIVATE_SYSTEM) or place.endswith("(deleted)"):
            found.add(place or "memory")
    return sorted(found)
