"""What confines a process, and how a child of this program takes it on: for attacks in its place.

A library of programs that run as root on nodes; it needs the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C  # ptrace(2)
_WALL = 0x40000000  # waitpid(2): children and threads of any kind
_STOP = 5.0  # seconds in which the kernel stops a thread
_INSTRUCTION = 8  # octets of a struct sock_filter
_SET_SECCOMP, _DROP_BOUND, _NO_NEW_PRIVILEGES = 22, 24, 38  # prctl(2)
_FILTER = 2  # SECCOMP_MODE_FILTER
_CAPABILITIES = 64
_CAPSET = 126  # system call of x86-64
_CAPSET_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, capset(2)
NAMESPACES = {  # and their flags of clone(2)
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
}
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long


class _Program(ctypes.Structure):
    """A struct sock_fprog (linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def required(result: int) -> int:
    """Return the result of a function of libc.

    Raises:
        OSError: it is negative.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def text(path: str) -> str:
    """Return the content of a file."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read()


def fields(status: str) -> dict[str, str]:
    """Return the fields of /proc/PID/status (proc(5))."""
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def label(pid: int) -> str:
    """Return the label of AppArmor; empty if the kernel has none."""
    try:
        return text(f"/proc/{pid}/attr/current").strip("\n\0")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return ""


def filters(pid: int) -> tuple[bytes, ...]:
    """Return the system-call filters of a process's first thread: the last installed one first.

    The thread is stopped for that (ptrace(2), PTRACE_SECCOMP_GET_FILTER).
    """
    required(LIBC.ptrace(_SEIZE, pid, None, None))
    required(LIBC.ptrace(_INTERRUPT, pid, None, None))
    _await_stop(pid)
    found: list[bytes] = []
    try:
        while True:
            count = required(LIBC.ptrace(_GET_FILTER, pid, len(found), None))
            room = (ctypes.c_ubyte * (count * _INSTRUCTION))()
            required(LIBC.ptrace(_GET_FILTER, pid, len(found), room))
            found.append(bytes(room))
    except FileNotFoundError:  # there is no further filter
        return tuple(found)
    except OSError as error:
        if error.errno == errno.EINVAL:  # it has none
            return ()
        raise
    finally:
        LIBC.ptrace(_DETACH, pid, None, None)


def _await_stop(pid: int) -> None:
    end = time.monotonic() + _STOP
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG | _WALL)[0]:
            return
        time.sleep(0.01)
    raise TimeoutError(f"process {pid} does not stop")


def enter(pid: int, *names: str) -> None:
    """Join namespaces of a process; one that is joined already is left out."""
    opened = []
    for name in names:
        place = f"/proc/{pid}/ns/{name}"
        if os.readlink(place) != os.readlink(f"/proc/self/ns/{name}"):
            opened.append((os.open(place, os.O_RDONLY), NAMESPACES[name]))
    for descriptor, kind in opened:
        required(LIBC.setns(descriptor, kind))
        os.close(descriptor)


def join_group(pid: int) -> None:
    """Join the control group of a process."""
    folder = text(f"/proc/{pid}/cgroup").strip().rpartition(":")[2]
    with open(f"/sys/fs/cgroup{folder}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))


def limit_bounding_set(kept: int) -> None:
    """Drop each capability that is not in a mask from the bounding set (capabilities(7))."""
    for capability in range(_CAPABILITIES):
        if not kept >> capability & 1:
            LIBC.prctl(_DROP_BOUND, capability, 0, 0, 0)


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capabilities of this process (capset(2))."""
    words = []
    for shift in (0, 32):
        words += [mask >> shift & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    head, sets = (ctypes.c_uint32 * 2)(_CAPSET_VERSION, 0), (ctypes.c_uint32 * 6)(*words)
    required(LIBC.syscall(_CAPSET, head, sets))


def put_on_profile(name: str) -> None:
    """Change to a profile of AppArmor (aa_change_profile(2))."""
    with open("/proc/self/attr/current", "w", encoding="ascii") as file:
        file.write(f"changeprofile {name}")


def put_on_filters(programs: tuple[bytes, ...]) -> None:
    """Gain no privileges from now on, and install system-call filters, in the order of `filters`."""
    required(LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    for instructions in reversed(programs):
        room = ctypes.create_string_buffer(instructions, len(instructions))
        program = _Program(len(instructions) // _INSTRUCTION, ctypes.addressof(room))
        required(LIBC.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0))
