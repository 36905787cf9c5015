"""A lab's enclosure: its network, mount and process namespaces.

An ordinary user's lab has a user namespace as well. The first process in the enclosure is the holder. A lab's
enclosure is found by its holder in /proc, so that no record of it can be stale. Entering forks: the child
works inside and the parent only waits. Emulators that libvirt starts in the child outlive it, as children of
the holder.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import process
from testbed.drivers.namespaces import init
from testbed.errors import MachineError

_MODULE = "testbed.drivers.namespaces.init"
_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Enclosure:
    """The namespaces of a lab, identified by the process that holds them."""

    lab: str
    state: Path
    pid: int


def enclosures(state: Path | None = None) -> Iterator[Enclosure]:
    """Yield this user's running enclosures, of one state folder or of all."""
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
    """Return whether two paths lead to one folder.

    They differ by a symbolic link, or since an earlier version used another spelling.
    """
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False


def _is_first(entry: Path) -> bool:
    """Return whether a process has id 1 in a process namespace below ours."""
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
        devices: device nodes below /dev that the lab may use in addition to the harmless ones, such as
            ``kvm``, or ``kvm:GID`` for a node that a group may open, if we may make one.
        python: interpreter that runs the holder.
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
    first_line = process.spawn(argv, log=log, timeout=timeouts.FIRST_LINE)
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
    try:
        descriptor = os.pidfd_open(enclosure.pid)
    except ProcessLookupError:  # it has ended since it was found
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not process.wait_readable(descriptor, timeout=timeouts.NAMESPACES_END):
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
    """Continue in a child process inside the enclosure.

    The parent waits and exits with the child's status. Call it while the process has one thread. The kernel
    kills the child when the parent ends.

    Raises:
        MachineError: the kernel refuses.

    """
    # All descriptors are opened before setns changes our view of /proc. The user namespace comes first, since
    # it grants the rights to enter the others. setns to a process namespace takes effect for children only,
    # hence the fork.
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
    """Forward a signal to the child, except Ctrl-C: the terminal has sent it already."""
    if received != signal.SIGINT or not os.isatty(0):
        os.kill(child, received)
