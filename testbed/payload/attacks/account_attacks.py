"""Tries, as the accounts of a node, to reach guests' memory, their files and the hypervisor.

It runs as root on nodes: one file, standard library only. For each account a child takes the account's
number and groups, and nothing else: it has no profile and no filter. Root makes every attempt first, since
an attempt that fails as root shows nothing. Accounts of workers that are in the same groups and have no
process are alike: one of them is tried. An attempt reads a few octets and changes nothing. Sockets are
not connected to, since QEMU's monitor has one client: the kernel is asked for the permission (access(2)).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import pwd
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_OCTETS = 16  # that are read of a guest's memory
_VERSION = 0xAE00  # KVM_GET_API_VERSION (linux/kvm.h)
_SEIZE = 0x4206  # PTRACE_SEIZE, ptrace(2)
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438  # system calls of x86-64
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

Outcomes = dict[str, str]
Attempt = tuple[str, "Callable[..., None]", tuple[object, ...]]


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def collect(request: dict[str, object]) -> dict[str, object]:
    """Return how each attempt ended, by account: "done" or the name of an error.

    Args:
        request: ``workers``: process ids by guest; ``range``: first and last number of workers' accounts;
            ``devices``, ``files`` and ``sockets``: paths; ``hypervisor``: a device.
    """
    workers: dict[str, int] = request["workers"]  # type: ignore[assignment]
    attempts = _attempts(request, {guest: (pid, _memory(pid)) for guest, pid in workers.items()})
    owners = {os.stat(f"/proc/{pid}").st_uid for pid in workers.values()}
    accounts = _chosen(pwd.getpwall(), request["range"], owners)  # type: ignore[arg-type]
    return {entry.pw_name: {"uid": entry.pw_uid, "outcomes": _tried(entry, attempts)} for entry in accounts}


def _chosen(
    accounts: list[pwd.struct_passwd], numbers: tuple[int, int], owners: set[int]
) -> list[pwd.struct_passwd]:
    """Return the accounts, without those of idle workers that are alike."""
    found, known = [], set()
    for entry in accounts:
        if numbers[0] <= entry.pw_uid <= numbers[1] and entry.pw_uid not in owners:
            groups = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)) - {entry.pw_uid}
            if groups in known:
                continue
            known.add(groups)
        found.append(entry)
    return found


def _memory(pid: int) -> int:
    """Return the address of a process's largest writable mapping: the memory of its guest."""
    largest, address = 0, 0
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            start, end = (int(number, 16) for number in words[0].split("-"))
            if words[1].startswith("rw") and end - start > largest:
                largest, address = end - start, start
    return address


def _tried(entry: pwd.struct_passwd, attempts: list[Attempt]) -> Outcomes:
    """Make all attempts in a child with an account; return {} if the child broke off."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            os.initgroups(entry.pw_name, entry.pw_gid)
            os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
            os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
            outcomes = {name: _outcome(attempt, arguments) for name, attempt, arguments in attempts}
            with open(writer, "w", encoding="utf-8") as pipe:
                json.dump(outcomes, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    found: Outcomes = json.loads(text) if text else {}
    return found


def _attempts(request: dict[str, object], targets: dict[str, tuple[int, int]]) -> list[Attempt]:
    found: list[Attempt] = [("use the hypervisor", _ask, (request["hypervisor"],))]
    for path in (*request["devices"], *request["files"]):  # type: ignore[misc]
        found += [(f"read {path}", _open, (path, os.O_RDONLY)), (f"write {path}", _open, (path, os.O_WRONLY))]
    found += [(f"connect to {path}", _connect, (path,)) for path in request["sockets"]]  # type: ignore[attr-defined]
    for guest, (pid, address) in targets.items():
        found += [
            (f"read the memory of {guest}", _read, (pid, address)),
            (f"copy the memory of {guest}", _copy, (pid, address)),
            (f"trace {guest}", _trace, (pid,)),
            (f"take a descriptor of {guest}", _take, (pid,)),
        ]
    return found


def _ask(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, _VERSION)
    finally:
        os.close(descriptor)


def _open(path: str, way: int) -> None:
    os.close(os.open(path, way | os.O_NONBLOCK | os.O_NOCTTY))


def _connect(path: str) -> None:
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise OSError(errno.ENOTSOCK, path)
    if not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, path)


def _read(pid: int, address: int) -> None:
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        os.pread(descriptor, _OCTETS, address)
    finally:
        os.close(descriptor)


def _copy(pid: int, address: int) -> None:
    room = ctypes.create_string_buffer(_OCTETS)
    own, other = _Vector(ctypes.addressof(room), _OCTETS), _Vector(address, _OCTETS)
    _require(_LIBC.process_vm_readv(pid, ctypes.byref(own), 1, ctypes.byref(other), 1, 0))


def _trace(pid: int) -> None:
    """Seize a process without stopping it; the kernel lets it go when this child ends."""
    _require(_LIBC.ptrace(_SEIZE, pid, None, None))


def _take(pid: int) -> None:
    handle = _require(_LIBC.syscall(_PIDFD_OPEN, pid, 0))
    try:
        os.close(_require(_LIBC.syscall(_PIDFD_GETFD, handle, 0, 0)))
    finally:
        os.close(handle)


def _require(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _outcome(attempt: Callable[..., None], arguments: tuple[object, ...]) -> str:
    try:
        attempt(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return "done"
