"""A lab's enclosure: network, mount and process namespaces of its own, and a user namespace for ordinary
users.

The first process in it is the holder. Finding a lab's enclosure is finding its holder in /proc; nothing is
written down that could be stale. Entering forks: the child works inside, the parent only waits, so that
what libvirt starts in the child outlives it under the holder.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.host import process
from testbed.drivers.namespaces import init
from testbed.errors import MachineError

_MODULE = "testbed.drivers.namespaces.init"
_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Enclosure:
    """The namespaces of a lab, named by the process that holds them."""

    lab: str
    state: Path
    pid: int


def enclosures(state: Path | None = None) -> Iterator[Enclosure]:
    """Yield the running enclosures of this user, of one state folder or of all."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if _MODULE not in words or entry.stat().st_uid != os.geteuid() or not _is_first(entry):
                continue
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        at = words.index(_MODULE)
        if len(words) > at + 2 and (state is None or _same(Path(words[at + 2]), state)):
            yield Enclosure(words[at + 1], Path(words[at + 2]), int(entry.name))


def _same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to one folder: by a symbolic link, or spelt differently by an earlier version of ours."""
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False


def _is_first(entry: Path) -> bool:
    """Tell whether a process is the first of a process namespace below ours."""
    for line in (entry / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            numbers = line.split()[1:]
            return len(numbers) > 1 and numbers[-1] == "1"
    return False


def find(lab: str, state: Path) -> Enclosure | None:
    """Return a lab's enclosure, or None if the lab has none."""
    return next((enclosure for enclosure in enclosures(state) if enclosure.lab == lab), None)


def create(lab: str, state: Path, *, devices: tuple[str, ...], python: str, log: Path) -> Enclosure:
    """Start the holder of a lab.

    Args:
        lab: the lab's name.
        state: the tool's state folder, part of the lab's identity.
        devices: device nodes below /dev that the lab may use beside the harmless ones, such as ``kvm``,
            or ``kvm:GID`` for one that a group may open, where we may make it.
        python: interpreter to run the holder with.
        log: file for the holder's messages.

    Raises:
        MachineError: namespaces or device nodes are not permitted here.

    """
    unshare = process.require("unshare", package="util-linux")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    argv = [
        unshare,
        *user,
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--propagation",
        "private",
        "--",
    ]
    argv += [python, "-m", _MODULE, lab, str(state), *devices]
    first_line = process.spawn(argv, log=log, timeout=60)
    found = find(lab, state)
    if first_line != init.READY or found is None:
        raise MachineError(
            f"cannot create the namespaces of the lab {lab}",
            fact=log.read_text(errors="replace").strip()[-1500:] or "the holder ended without a word",
            remedy="run `testbed doctor`; it names what this machine does not permit and how to permit it",
        )
    return found


def destroy(enclosure: Enclosure) -> None:
    """End a lab's holder, and with it every process in the lab.

    Raises:
        MachineError: the holder does not end within 30 s.

    """
    descriptor = os.pidfd_open(enclosure.pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not process.wait_readable(descriptor, timeout=30):
            raise MachineError(
                f"the lab {enclosure.lab} does not end",
                fact=f"its holder, process {enclosure.pid}, is still there 30 s after SIGKILL",
                remedy="look for a process in uninterruptible sleep (`ps -eo pid,stat,args | grep ' D'`)",
            )
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def enter(enclosure: Enclosure) -> None:
    """Continue inside the enclosure, in a child process; the parent waits and ends with the child's status.

    Call it while the process has one thread. The child dies with its parent.

    Raises:
        MachineError: the kernel refuses.

    """
    descriptors = []
    names = ("net", "mnt", "pid") if os.geteuid() == 0 else ("user", "net", "mnt", "pid")
    for name in names:
        descriptors.append(os.open(f"/proc/{enclosure.pid}/ns/{name}", os.O_RDONLY))
    here = _working_folder()
    for name, descriptor in zip(names, descriptors, strict=True):
        if _LIBC.setns(descriptor, 0) != 0:
            fact = f"setns({name}): {os.strerror(ctypes.get_errno())}"
            raise MachineError(
                f"cannot enter the lab {enclosure.lab}",
                fact=fact,
                remedy="run the command as the user who made the lab",
            )
        os.close(descriptor)
    child = os.fork()
    if child == 0:
        _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)
        try:
            os.chdir(here)
        except OSError:  # below /run or /dev, of which the lab has its own
            os.chdir("/")
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: _forward(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _working_folder() -> Path:
    """Return the working folder, or the root folder where that has been deleted or closed to us."""
    try:
        return Path.cwd()
    except OSError:
        return Path("/")


def _forward(child: int, received: int) -> None:
    """Pass a signal on, except Ctrl-C: the terminal has given it to the child already."""
    if received != signal.SIGINT or not os.isatty(0):
        os.kill(child, received)
