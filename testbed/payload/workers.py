"""Reads the processes behind a node's guests: privileges, filters, devices and sockets.

It runs as root, on nodes of a lab (`collect`) and on hosts that others have set up (`host`). A process that
ends meanwhile is left out. It needs Python 3.9.
"""

from __future__ import annotations

import ctypes
import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C  # ptrace(2)
_WALL = 0x40000000  # waitpid(2): children and threads of any kind
_STOP = 5.0  # seconds in which the kernel stops a thread
_INSTRUCTION = 8  # octets of a struct sock_filter
_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_TABLES = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "packet")
_DEPTH = 3  # folders below /dev
_WORDS, _WORD = 1000, 500  # words of a command line, and characters of each

Facts = dict[str, object]


def collect(request: dict[str, object]) -> Facts:
    """Return the facts about each worker, and the mount namespace of this program: the node's own.

    Workers are the processes in libvirt's folder of process ids, and every QEMU under a worker's account.

    Args:
        request: ``folder`` of libvirt's files ``DOMAIN.pid``, ``programs`` (beginnings of QEMU's path), and
            ``accounts`` (first and last user id of workers).
    """
    found = [facts for pid, name in _workers(request).items() if (facts := _described(pid, name)) is not None]
    return {"mounts": os.readlink("/proc/self/ns/mnt"), "workers": found}


def host(request: dict[str, object]) -> Facts:
    """Return the same, and settings of the host: page merging, swap, core files, libvirt's sockets.

    Args:
        request: as for `collect`.
    """
    merging = [
        _text(f"/sys/kernel/mm/ksm/{name}").strip() for name in ("run", "pages_shared", "pages_sharing")
    ]
    system = dict(line.split("=", 1) for line in _text("/etc/os-release").splitlines() if "=" in line)
    sockets = []
    for path in (
        "libvirt-sock",
        "libvirt-sock-ro",
        "libvirt-admin-sock",
        "virtqemud-sock",
        "virtqemud-sock-ro",
    ):
        try:
            facts = os.stat(f"/run/libvirt/{path}")
        except OSError:
            continue
        mode = f"{stat.S_IMODE(facts.st_mode):o}"
        sockets.append((f"/run/libvirt/{path}", mode, facts.st_uid, facts.st_gid))
    return {
        **collect(request),
        "system": system.get("PRETTY_NAME", "").strip('"'),
        "deduplication": [int(text) for text in merging if text.isdigit()],
        "swap": _text("/proc/swaps").splitlines()[1:],
        "core_pattern": _text("/proc/sys/kernel/core_pattern").strip(),
        "sockets": sockets,
    }


def _workers(request: dict[str, object]) -> dict[int, str]:
    """Return the name of each worker, by its process id."""
    folder, programs = str(request["folder"]), tuple(map(str, request["programs"]))  # type: ignore[call-overload]
    first, last = request["accounts"]  # type: ignore[misc]
    found: dict[int, str] = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if name.endswith(".pid") and name != "driver.pid":
            text = _text(f"{folder}/{name}").strip()
            if text.isdigit():
                found[int(text)] = name.removesuffix(".pid")
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in found:
            accounts = _fields(_text(f"/proc/{entry}/status")).get("Uid", "").split()
            own = any(first <= int(account) <= last for account in accounts)  # type: ignore[has-type]
            if own and _link(f"/proc/{entry}/exe").startswith(programs):
                found[int(entry)] = f"process {entry}"
    return found


def _described(pid: int, name: str) -> Facts | None:
    """Return the facts about one process, or None if it has ended."""
    try:
        facts: Facts = {
            "name": name,
            "pid": pid,
            "label": _label(pid),
            "accounts": [int(word) for word in _fields(_text(f"/proc/{pid}/status"))["Uid"].split()],
            "threads": sorted(set(_threads(pid))),
            "mounts": os.readlink(f"/proc/{pid}/ns/mnt"),
            "devices": sorted(_devices(f"/proc/{pid}/root/dev")),
            "sockets": sorted(_sockets(pid)),
            "core": _core(_text(f"/proc/{pid}/limits")),
            "arguments": [word[:_WORD] for word in _text(f"/proc/{pid}/cmdline").split("\0")[:_WORDS]],
        }
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return None
    try:
        facts["filters"] = _filters(pid)
    except OSError as error:
        facts["unread"] = f"{error}"
    return facts


def _label(pid: int) -> str:
    """Return the label of AppArmor or SELinux; empty if the kernel has neither."""
    try:
        return _text(f"/proc/{pid}/attr/current").strip("\n\0")
    except OSError:
        return ""


def _threads(pid: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield `_thread` of each thread of a process; QEMU's helpers of input and output come and go."""
    for number in os.listdir(f"/proc/{pid}/task"):
        try:
            yield _thread(f"/proc/{pid}/task/{number}/status")
        except (FileNotFoundError, ProcessLookupError):
            if int(number) == pid:
                raise


def _thread(path: str) -> tuple[int, int, int, int]:
    """Return mode of seccomp, number of filters, whether it gains no privileges, and all capabilities."""
    fields = _fields(_text(path))
    if "Seccomp" not in fields:
        raise ProcessLookupError(path)
    capabilities = 0
    for name in _SETS:
        capabilities |= int(fields[name], 16)
    return (
        int(fields["Seccomp"]),
        int(fields.get("Seccomp_filters", "0")),
        int(fields["NoNewPrivs"]),
        capabilities,
    )


def _devices(folder: str, below: str = "", depth: int = 0) -> list[str]:
    """Return the device nodes of a folder: kind, numbers and path; other file systems are not entered."""
    found: list[str] = []
    here = os.lstat(folder).st_dev
    for entry in os.scandir(folder):
        facts, name = entry.stat(follow_symlinks=False), f"{below}{entry.name}"
        if stat.S_ISDIR(facts.st_mode) and facts.st_dev == here and depth < _DEPTH:
            found += _devices(entry.path, f"{name}/", depth + 1)
        elif stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
            kind = "b" if stat.S_ISBLK(facts.st_mode) else "c"
            found.append(f"{kind} {os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)} {name}")
    return found


def _sockets(pid: int) -> list[str]:
    """Return the sockets of a process that belong to a network: table, local address and state."""
    own = {
        target[len("socket:[") : -1]
        for descriptor in os.listdir(f"/proc/{pid}/fd")
        if (target := _link(f"/proc/{pid}/fd/{descriptor}")).startswith("socket:[")
    }
    found = []
    for table in _TABLES:
        for words in (row.split() for row in _text(f"/proc/{pid}/net/{table}").splitlines()[1:]):
            # the inode is the ninth column, or the last one of packet(7)
            if table == "packet" and words[-1] in own:
                found.append(f"packet {words[3]}")
            elif table != "packet" and len(words) > 9 and words[9] in own:
                found.append(f"{table} {words[1]} {words[3]}")
    return found


def _core(limits: str) -> list[str]:
    """Return the soft and the hard limit of a core file's size."""
    line = next((line for line in limits.splitlines() if line.startswith("Max core file size")), "")
    return line.split()[4:6]


def _filters(pid: int) -> list[list[list[int]]]:
    """Return the system-call filters of a process's first thread: the last installed one first.

    The thread is stopped for that (ptrace(2), PTRACE_SECCOMP_GET_FILTER).

    Raises:
        OSError: it cannot be stopped or read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def trace(request: int, address: int = 0, data: object = None) -> int:
        answer = int(libc.ptrace(request, pid, address, data))
        if answer < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return answer

    trace(_SEIZE)
    trace(_INTERRUPT)
    _await_stop(pid)
    found: list[list[list[int]]] = []
    try:
        while True:
            count = trace(_GET_FILTER, len(found))
            room = (ctypes.c_ubyte * (count * _INSTRUCTION))()
            trace(_GET_FILTER, len(found), room)
            found.append(_instructions(bytes(room)))
    except FileNotFoundError:  # there is no further filter
        return found
    finally:
        trace(_DETACH)


def _await_stop(pid: int) -> None:
    end = time.monotonic() + _STOP
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG | _WALL)[0]:
            return
        time.sleep(0.01)
    raise TimeoutError(f"process {pid} does not stop")


def _instructions(data: bytes) -> list[list[int]]:
    """Return code, jumps and value of each struct sock_filter (linux/filter.h)."""
    return [
        [
            int.from_bytes(data[at : at + 2], "little"),
            data[at + 2],
            data[at + 3],
            int.from_bytes(data[at + 4 : at + 8], "little"),
        ]
        for at in range(0, len(data), _INSTRUCTION)
    ]


def _fields(status: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
