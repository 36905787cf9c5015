"""Attempts in the place of another process: how each ends, and children that make them.

A library of programs that run as root on nodes; it needs the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import time

from testbed.payload.attacks.confinement import LIBC, required

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable

_OCTETS = 16  # that are read of a process's memory
_PATIENCE = 5.0  # seconds in which a child ends after it has closed its pipe

Facts = dict[str, object]
Outcomes = dict[str, str]
Attempt = tuple[str, "Callable[..., object]", tuple[object, ...]]


class _Vector(ctypes.Structure):
    """A struct iovec (process_vm_readv(2))."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def outcome(attempt: Callable[..., object], *arguments: object) -> str:
    """Return how an attempt ends: "done", or the name of an error."""
    try:
        attempt(*arguments)
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return "done"


def outcomes(attempts: list[Attempt]) -> Outcomes:
    """Return how each attempt ends, by its name."""
    return {name: outcome(attempt, *arguments) for name, attempt, arguments in attempts}


def tried(attempts: list[Attempt], wear: Callable[[], None] = lambda: None) -> Outcomes:
    """Make all attempts in a child; return {} if it broke off.

    Args:
        wear: what the child does first.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            wear()
            os.write(writer, json.dumps(outcomes(attempts)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    found: Outcomes = json.loads(text) if text else {}
    return found


def watched(
    wear: Callable[[], None], act: Callable[[int], object], describe: Callable[[int], Facts]
) -> tuple[Facts, bytes, int]:
    """Let a child wear something, and act after it was looked at.

    Args:
        act: what it does then, given a descriptor for its answer.
        describe: looks at a process.

    Returns:
        What the child wore ({} if it could not), its answer, and its status: as of
        `os.waitstatus_to_exitcode`, and 0 for a child that became a program which does not end.
    """
    reader, writer = os.pipe()
    waits, goes = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            os.close(goes)
            wear()
            os.write(writer, b"w")
            os.read(waits, 1)
            act(writer)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    os.close(waits)
    worn: Facts = {}
    answer = b""
    try:
        with open(reader, "rb") as pipe:
            if pipe.read(1):
                worn = describe(child)
                os.write(goes, b"g")
                answer = pipe.read()
    finally:
        os.close(goes)  # else a child that waits would wait for ever
        status = _ended(child)
    return worn, answer, status


def _ended(child: int) -> int:
    """Return the status of a child; 0 for one that does not end by itself: a program that was started."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 0


def become(entry: pwd.struct_passwd) -> None:
    """Take number and groups of an account."""
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def open_path(path: str, way: int) -> None:
    """Open and close a file or a device, without waiting for anything."""
    os.close(os.open(path, way | os.O_NONBLOCK | os.O_NOCTTY))


def memory(pid: int) -> int:
    """Return the address of a process's largest writable mapping: the memory of its guest."""
    largest, address = 0, 0
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            start, end = (int(number, 16) for number in words[0].split("-"))
            if words[1].startswith("rw") and end - start > largest:
                largest, address = end - start, start
    return address


def copy_memory(pid: int, address: int) -> None:
    """Copy a few octets of a process's memory (process_vm_readv(2))."""
    room = ctypes.create_string_buffer(_OCTETS)
    own, other = _Vector(ctypes.addressof(room), _OCTETS), _Vector(address, _OCTETS)
    required(LIBC.process_vm_readv(pid, ctypes.byref(own), 1, ctypes.byref(other), 1, 0))
