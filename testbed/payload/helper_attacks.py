"""Tries, in the place of helpers of guests, what one that was taken over would try (PRC-06).

It runs as root on nodes: one file, standard library only. Helpers are processes of known programs, which are
recognised by device and inode of the program and not by a name, and all that hold a pipe of a worker. Each
layer that confines a helper is worn by a child of its own: its profile alone; its capabilities, system-call
filters, mounts and network; and everything. The child waits until it was looked at, so that what it wears is
read by another process. Root makes every attempt first and last. An attempt opens, and changes nothing: a
datagram socket is connected to a stream socket, which the kernel refuses after it has granted the permission
(unix(7), EPROTOTYPE); a module and an option of a file system do not exist.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C  # ptrace(2)
_WALL = 0x40000000  # waitpid(2): children and threads of any kind
_STOP = 5.0  # seconds in which the kernel stops a thread
_INSTRUCTION = 8  # octets of a struct sock_filter
_SET_SECCOMP, _DROP_BOUND, _NO_NEW_PRIVILEGES = 22, 24, 38  # prctl(2)
_FILTER = 2  # SECCOMP_MODE_FILTER
_CAPABILITIES = 64
_CAPSET, _INIT_MODULE = 126, 175  # system calls of x86-64
_CAPSET_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, capset(2)
_NEW_MOUNTS, _NEW_USERS, _NEW_NETWORK = 0x20000, 0x10000000, 0x40000000  # clone(2)
_OCTETS = 16  # that are read of a worker's memory
_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long

Facts = dict[str, object]
Outcomes = dict[str, str]
Attempt = tuple[str, "Callable[..., object]", tuple[object, ...]]


class _Program(ctypes.Structure):
    """A struct sock_fprog (linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def collect(request: dict[str, object]) -> Facts:
    """Return the helpers of a node, and how each attempt ended, "done" or the name of an error.

    Args:
        request: ``programs``: paths of known helpers; ``workers``: process ids by guest; ``own``: a file that
            the helper writes; ``read``, ``write``, ``folders``, ``sockets`` and ``programs to start``: paths.
    """
    workers: dict[str, int] = request["workers"]  # type: ignore[assignment]
    attempts = _attempts(request, {guest: (pid, _memory(pid)) for guest, pid in workers.items()})
    before = _tried(attempts)
    helpers = []
    for pid, program in _helpers(request["programs"], workers).items():  # type: ignore[arg-type]
        filters = _filters(pid)
        facts = {**_described(pid), "program": program, "serves": sorted(_served(pid, workers))}
        layers = {
            "profile": _tried(attempts, pid, profile=True),
            "privileges": _tried(attempts, pid, filters=filters),
            "everything": _tried(attempts, pid, filters=filters, profile=True),
        }
        helpers.append({**facts, "filters": len(filters), "layers": layers})
    return {"before": before, "helpers": helpers, "after": _tried(attempts)}


def _helpers(programs: list[str], workers: dict[str, int]) -> dict[int, str]:
    """Return the program of each helper, by its process id."""
    known = {}
    for path in programs:
        try:
            facts = os.stat(path)
        except OSError:
            continue
        known[facts.st_dev, facts.st_ino] = path
    found = {}
    for pid in _processes():
        try:
            facts = os.stat(f"/proc/{pid}/exe")
            path = known.get((facts.st_dev, facts.st_ino), "")
            if path or (pid not in workers.values() and pid != os.getpid() and _served(pid, workers)):
                found[pid] = path or os.readlink(f"/proc/{pid}/exe")
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread of the kernel, or it has ended
    return found


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _served(pid: int, workers: dict[str, int]) -> set[str]:
    """Return the guests with whose worker a process shares a pipe."""
    own = _pipes(pid)
    return {guest for guest, worker in workers.items() if own & _pipes(worker)} if own else set()


def _pipes(pid: int) -> set[str]:
    found = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except FileNotFoundError:
            continue
        if target.startswith("pipe:"):
            found.add(target)
    return found


def _described(pid: int) -> Facts:
    """Return what the kernel holds against a process, thread by thread."""
    threads = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        fields = _fields(_text(f"/proc/{pid}/task/{thread}/status"))
        capabilities = 0
        for name in _SETS:
            capabilities |= int(fields[name], 16)
        bound = int(fields["CapBnd"], 16)
        threads.add((int(fields["Seccomp"]), int(fields["NoNewPrivs"]), capabilities, bound))
    return {
        "pid": pid,
        "label": _label(pid),
        "account": int(_fields(_text(f"/proc/{pid}/status"))["Uid"].split()[1]),
        "threads": sorted(threads),
        "mounts": os.readlink(f"/proc/{pid}/ns/mnt"),
        "network": os.readlink(f"/proc/{pid}/ns/net"),
    }


def _label(pid: int) -> str:
    """Return the label of AppArmor; empty if the kernel has none."""
    try:
        return _text(f"/proc/{pid}/attr/current").strip("\n\0")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return ""


def _tried(
    attempts: list[Attempt],
    pid: int = 0,
    *,
    filters: tuple[bytes, ...] | None = None,
    profile: bool = False,
) -> Facts:
    """Make all attempts in a child, which wears layers of a process; return {} if it broke off.

    Args:
        pid: the process whose layers are worn.
        filters: its system-call filters, which are worn with all its privileges; not worn if None.
        profile: whether its profile is worn.
    """
    reader, writer = os.pipe()
    waits, goes = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            os.close(goes)
            _wear(pid, filters, profile=profile)
            os.write(writer, b"w")
            os.read(waits, 1)
            outcomes = {name: _outcome(attempt, arguments) for name, attempt, arguments in attempts}
            os.write(writer, json.dumps(outcomes).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    os.close(waits)
    try:
        with open(reader, "rb") as pipe:
            if not pipe.read(1):
                return {}
            worn = _described(child)
            os.write(goes, b"g")
            text = pipe.read()
    finally:
        os.close(goes)  # else a child that waits would wait for ever
        os.waitpid(child, 0)
    return {"worn": worn, "outcomes": json.loads(text)} if text else {}


def _wear(pid: int, filters: tuple[bytes, ...] | None, *, profile: bool) -> None:
    """Take on the profile of a process, or all that else confines it, or both."""
    label = _label(pid).partition(" ")[0] if profile else ""
    if filters is not None:
        fields = _fields(_text(f"/proc/{pid}/status"))
        for name, kind in (("net", _NEW_NETWORK), ("mnt", _NEW_MOUNTS)):
            descriptor = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
            _require(_LIBC.setns(descriptor, kind))
            os.close(descriptor)
        bound = int(fields["CapBnd"], 16)
        for capability in range(_CAPABILITIES):
            if not bound >> capability & 1:
                _LIBC.prctl(_DROP_BOUND, capability, 0, 0, 0)
        _limit(*(int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapInh")))
    if profile and label != "unconfined":
        with open("/proc/self/attr/current", "w", encoding="ascii") as file:
            file.write(f"changeprofile {label}")
    if filters is not None:
        if fields["NoNewPrivs"] == "1" or filters:
            _require(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        for instructions in reversed(filters):  # the kernel lists the last one first
            room = ctypes.create_string_buffer(instructions, len(instructions))
            program = _Program(len(instructions) // _INSTRUCTION, ctypes.addressof(room))
            _require(_LIBC.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0))


def _limit(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capabilities of this process (capset(2))."""
    words = []
    for shift in (0, 32):
        words += [mask >> shift & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    head, sets = (ctypes.c_uint32 * 2)(_CAPSET_VERSION, 0), (ctypes.c_uint32 * 6)(*words)
    _require(_LIBC.syscall(_CAPSET, head, sets))


def _attempts(request: dict[str, object], targets: dict[str, tuple[int, int]]) -> list[Attempt]:
    found: list[Attempt] = [("write its own log", _open, (request["own"], os.O_WRONLY))]
    found += [(f"read {path}", _open, (path, os.O_RDONLY)) for path in request["read"]]  # type: ignore[attr-defined]
    found += [(f"write {path}", _open, (path, os.O_WRONLY)) for path in request["write"]]  # type: ignore[attr-defined]
    found += [(f"list {path}", os.listdir, (path,)) for path in request["folders"]]  # type: ignore[attr-defined]
    found += [(f"connect to {path}", _connect, (path,)) for path in request["sockets"]]  # type: ignore[attr-defined]
    for guest, (pid, address) in targets.items():
        found += [
            (f"copy the memory of {guest}", _copy, (pid, address)),
            (f"trace {guest}", _trace, (pid,)),
            (f"signal {guest}", os.kill, (pid, 0)),
        ]
    return [
        *found,
        *((f"start {path}", _start, (path,)) for path in request["programs to start"]),  # type: ignore[attr-defined]
        ("load a module", _load, ()),
        ("mount a file system", _mount, ()),
        ("open a raw socket", _socket, (socket.SOCK_RAW, 1)),
        ("open a socket of a network", _socket, (socket.SOCK_STREAM, 0)),
        ("make a user namespace", _forked, (_unshare,)),
        ("take on the profile of libvirtd", _forked, (_take_on,)),
    ]


def _open(path: str, way: int) -> None:
    os.close(os.open(path, way | os.O_NONBLOCK | os.O_NOCTTY))


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        try:
            client.connect(path)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise


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


def _copy(pid: int, address: int) -> None:
    room = ctypes.create_string_buffer(_OCTETS)
    own, other = _Vector(ctypes.addressof(room), _OCTETS), _Vector(address, _OCTETS)
    _require(_LIBC.process_vm_readv(pid, ctypes.byref(own), 1, ctypes.byref(other), 1, 0))


def _trace(pid: int) -> None:
    """Seize a process without stopping it; the kernel lets it go when the child ends."""
    _forked(lambda: _require(_LIBC.ptrace(_SEIZE, pid, None, None)))


def _start(path: str) -> None:
    def become() -> None:
        os.execv(path, [path])  # noqa: S606 - the path is the request's

    _forked(become)


def _load() -> None:
    """Ask for a module without content, which the kernel refuses after it has looked at the privilege."""
    room = ctypes.create_string_buffer(_OCTETS)
    _expect(errno.ENOEXEC, _LIBC.syscall(_INIT_MODULE, room, _OCTETS, b""))


def _mount() -> None:
    """Mount with an unknown option; AppArmor refuses an unknown kind in the same way as the kernel does."""
    _expect(errno.EINVAL, _LIBC.mount(b"none", b"/", b"tmpfs", 0, b"no-such-option"))


def _socket(kind: int, protocol: int) -> None:
    socket.socket(socket.AF_INET, kind, protocol).close()


def _unshare() -> None:
    _require(_LIBC.unshare(_NEW_USERS))


def _take_on() -> None:
    with open("/proc/self/attr/current", "w", encoding="ascii") as file:
        file.write("changeprofile libvirtd")


def _forked(action: Callable[[], object]) -> None:
    """Do something in a child, and raise its error."""
    child = os.fork()
    if not child:
        number = 0
        try:
            action()
        except OSError as error:
            number = error.errno or 255
        finally:
            os._exit(number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(status, "the child could not")


def _expect(number: int, result: int) -> None:
    """Raise the error of a system call, unless it is the one that shows that it was permitted."""
    if result < 0 and ctypes.get_errno() != number:
        raise OSError(ctypes.get_errno(), "refused")


def _require(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _outcome(attempt: Callable[..., object], arguments: tuple[object, ...]) -> str:
    try:
        attempt(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return "done"


def _filters(pid: int) -> tuple[bytes, ...]:
    """Return the system-call filters of a process's first thread: the last installed one first.

    The thread is stopped for that (ptrace(2), PTRACE_SECCOMP_GET_FILTER).
    """
    _require(_LIBC.ptrace(_SEIZE, pid, None, None))
    _require(_LIBC.ptrace(_INTERRUPT, pid, None, None))
    _await_stop(pid)
    found: list[bytes] = []
    try:
        while True:
            count = _require(_LIBC.ptrace(_GET_FILTER, pid, len(found), None))
            room = (ctypes.c_ubyte * (count * _INSTRUCTION))()
            _require(_LIBC.ptrace(_GET_FILTER, pid, len(found), room))
            found.append(bytes(room))
    except FileNotFoundError:  # there is no further filter
        return tuple(found)
    except OSError as error:
        if error.errno == errno.EINVAL:  # it has none
            return ()
        raise
    finally:
        _LIBC.ptrace(_DETACH, pid, None, None)


def _await_stop(pid: int) -> None:
    end = time.monotonic() + _STOP
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG | _WALL)[0]:
            return
        time.sleep(0.01)
    raise TimeoutError(f"process {pid} does not stop")


def _fields(status: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read()
