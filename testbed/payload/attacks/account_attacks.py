"""Tries, as the accounts of a node, to reach guests' memory, their files and the hypervisor.

It runs as root on nodes. For each account a child takes the account's number and groups, and nothing
else: it has no profile and no filter. Root makes every attempt first, since
an attempt that fails as root shows nothing. Accounts of workers that are in the same groups and have no
process are alike: one of them is tried. An attempt reads a few octets and changes nothing. Sockets are
not connected to, since QEMU's monitor has one client: the kernel is asked for the permission (access(2)).
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
from functools import partial

from testbed.payload.attacks import attempts
from testbed.payload.attacks.confinement import LIBC, required

_OCTETS = 16  # that are read of a guest's memory
_VERSION = 0xAE00  # KVM_GET_API_VERSION (linux/kvm.h)
_SEIZE = 0x4206  # PTRACE_SEIZE, ptrace(2)
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438  # system calls of x86-64


def collect(request: dict[str, object]) -> dict[str, object]:
    """Return how each attempt ended, by account: "done" or the name of an error.

    Args:
        request: ``workers``: process ids by guest; ``range``: first and last number of workers' accounts;
            ``devices``, ``files`` and ``sockets``: paths; ``hypervisor``: a device.
    """
    workers: dict[str, int] = request["workers"]  # type: ignore[assignment]
    tries = _attempts(request, {guest: (pid, attempts.memory(pid)) for guest, pid in workers.items()})
    owners = {os.stat(f"/proc/{pid}").st_uid for pid in workers.values()}
    accounts = _chosen(pwd.getpwall(), request["range"], owners)  # type: ignore[arg-type]
    return {
        entry.pw_name: {
            "uid": entry.pw_uid,
            "outcomes": attempts.tried(tries, partial(attempts.become, entry)),
        }
        for entry in accounts
    }


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


def _attempts(request: dict[str, object], targets: dict[str, tuple[int, int]]) -> list[attempts.Attempt]:
    found: list[attempts.Attempt] = [("use the hypervisor", _ask, (request["hypervisor"],))]
    for path in (*request["devices"], *request["files"]):  # type: ignore[misc]
        found += [
            (f"read {path}", attempts.open_path, (path, os.O_RDONLY)),
            (f"write {path}", attempts.open_path, (path, os.O_WRONLY)),
        ]
    found += [(f"connect to {path}", _connect, (path,)) for path in request["sockets"]]  # type: ignore[attr-defined]
    for guest, (pid, address) in targets.items():
        found += [
            (f"read the memory of {guest}", _read, (pid, address)),
            (f"copy the memory of {guest}", attempts.copy_memory, (pid, address)),
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


def _trace(pid: int) -> None:
    """Seize a process without stopping it; the kernel lets it go when this child ends."""
    required(LIBC.ptrace(_SEIZE, pid, None, None))


def _take(pid: int) -> None:
    handle = required(LIBC.syscall(_PIDFD_OPEN, pid, 0))
    try:
        os.close(required(LIBC.syscall(_PIDFD_GETFD, handle, 0, 0)))
    finally:
        os.close(handle)
