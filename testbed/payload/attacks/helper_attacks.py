"""Tries, in the place of helpers of guests, what one that was taken over would try (PRC-06).

It runs as root on nodes. Helpers are processes of known programs, which are recognised by device and inode of
the program and not by a name, and all that hold a pipe of a worker. Each layer that confines a helper is worn
by a child of its own: its profile alone; its capabilities, system-call filters, mounts and network; and
everything. The child waits until it was looked at, so that what it wears is read by another process. Root
makes every attempt first and last. An attempt opens, and changes nothing: a datagram socket is connected to a
stream socket, which the kernel refuses after it has granted the permission (unix(7), EPROTOTYPE); a module
and an option of a file system do not exist.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket

from testbed.payload.attacks import attempts, confinement

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_SEIZE = 0x4206  # ptrace(2)
_INIT_MODULE = 175  # system call of x86-64
_NEW_USERS = 0x10000000  # clone(2)
_OCTETS = 16  # of a module without content
_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_LIBC = confinement.LIBC

Facts = dict[str, object]


def collect(request: dict[str, object]) -> Facts:
    """Return the helpers of a node, and how each attempt ended, "done" or the name of an error.

    Args:
        request: ``programs``: paths of known helpers; ``workers``: process ids by guest; ``own``: a file that
            the helper writes; ``read``, ``write``, ``folders``, ``sockets`` and ``programs to start``: paths.
    """
    workers: dict[str, int] = request["workers"]  # type: ignore[assignment]
    tries = _attempts(request, {guest: (pid, attempts.memory(pid)) for guest, pid in workers.items()})
    before = _tried(tries)
    helpers = []
    for pid, program in _helpers(request["programs"], workers).items():  # type: ignore[arg-type]
        filters = confinement.filters(pid)
        facts = {**_described(pid), "program": program, "serves": sorted(_served(pid, workers))}
        layers = {
            "profile": _tried(tries, pid, profile=True),
            "privileges": _tried(tries, pid, filters=filters),
            "everything": _tried(tries, pid, filters=filters, profile=True),
        }
        helpers.append({**facts, "filters": len(filters), "layers": layers})
    return {"before": before, "helpers": helpers, "after": _tried(tries)}


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
        fields = confinement.fields(confinement.text(f"/proc/{pid}/task/{thread}/status"))
        capabilities = 0
        for name in _SETS:
            capabilities |= int(fields[name], 16)
        bound = int(fields["CapBnd"], 16)
        threads.add((int(fields["Seccomp"]), int(fields["NoNewPrivs"]), capabilities, bound))
    return {
        "pid": pid,
        "label": confinement.label(pid),
        "account": int(confinement.fields(confinement.text(f"/proc/{pid}/status"))["Uid"].split()[1]),
        "threads": sorted(threads),
        "mounts": os.readlink(f"/proc/{pid}/ns/mnt"),
        "network": os.readlink(f"/proc/{pid}/ns/net"),
    }


def _tried(
    tries: list[attempts.Attempt],
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
    worn, text, _ = attempts.watched(
        lambda: _wear(pid, filters, profile=profile),
        lambda writer: os.write(writer, json.dumps(attempts.outcomes(tries)).encode()),
        _described,
    )
    return {"worn": worn, "outcomes": json.loads(text)} if text else {}


def _wear(pid: int, filters: tuple[bytes, ...] | None, *, profile: bool) -> None:
    """Take on the profile of a process, or all that else confines it, or both."""
    label = confinement.label(pid).partition(" ")[0] if profile else ""
    if filters is not None:
        fields = confinement.fields(confinement.text(f"/proc/{pid}/status"))
        confinement.enter(pid, "net", "mnt")
        confinement.limit_bounding_set(int(fields["CapBnd"], 16))
        confinement.set_capabilities(*(int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapInh")))
    if profile and label != "unconfined":
        confinement.put_on_profile(label)
    if filters is not None and (fields["NoNewPrivs"] == "1" or filters):
        confinement.put_on_filters(filters)


def _attempts(request: dict[str, object], targets: dict[str, tuple[int, int]]) -> list[attempts.Attempt]:
    found: list[attempts.Attempt] = [("write its own log", attempts.open_path, (request["own"], os.O_WRONLY))]
    found += [(f"read {path}", attempts.open_path, (path, os.O_RDONLY)) for path in request["read"]]  # type: ignore[attr-defined]
    found += [(f"write {path}", attempts.open_path, (path, os.O_WRONLY)) for path in request["write"]]  # type: ignore[attr-defined]
    found += [(f"list {path}", os.listdir, (path,)) for path in request["folders"]]  # type: ignore[attr-defined]
    found += [(f"connect to {path}", _connect, (path,)) for path in request["sockets"]]  # type: ignore[attr-defined]
    for guest, (pid, address) in targets.items():
        found += [
            (f"copy the memory of {guest}", attempts.copy_memory, (pid, address)),
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


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        try:
            client.connect(path)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise


def _trace(pid: int) -> None:
    """Seize a process without stopping it; the kernel lets it go when the child ends."""
    _forked(lambda: confinement.required(_LIBC.ptrace(_SEIZE, pid, None, None)))


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
    confinement.required(_LIBC.unshare(_NEW_USERS))


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
