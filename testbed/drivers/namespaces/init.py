"""The first process of a lab's namespaces.

It keeps them alive, mounts a private /run and /dev, and reaps orphans. It runs as
``python -m testbed.drivers.namespaces.init LAB STATE [DEVICE[:GROUP] …]`` in new network, mount and process
namespaces. When it ends, the kernel kills all processes in them; so one kill takes a lab down (D2). /dev has
only the listed device nodes: a guest's emulator never sees the outer machine's disks, and an accelerator that
does not work is hidden (D7).
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import process
from testbed.drivers.host.folders import LAB_LINK
from testbed.errors import MachineError

READY = "ready"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun")


def _mount(*arguments: str) -> None:
    process.run(
        ["mount", *arguments],
        what="cannot prepare the lab's namespaces",
        timeout=timeouts.NAMESPACES,
        error=MachineError,
    )


def _made(device: Path, target: Path, group: int) -> bool:
    """Make a device node that a group may open; return False if mknod is not permitted."""
    try:
        os.mknod(target, stat.S_IFCHR | 0o660, device.stat().st_rdev)
    except PermissionError:
        return False
    os.chown(target, 0, group)
    target.chmod(0o660)
    return True


def _private_dev(extra: list[str]) -> None:
    # Built aside and moved at the end: the sources of the bind mounts are in the /dev that it covers.
    staging = Path("/run/dev")
    staging.mkdir()
    _mount("-t", "tmpfs", "-o", "mode=755,nosuid", "dev", str(staging))
    for word in (*_DEVICES, *extra):
        name, _, group = word.partition(":")
        target = staging / name
        target.parent.mkdir(exist_ok=True)
        if not (group and _made(Path("/dev", name), target, int(group))):
            target.touch()
            _mount("--bind", f"/dev/{name}", str(target))
    for name, target_name in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        (staging / name).symlink_to(target_name)
    for name, options in (("pts", "newinstance,ptmxmode=0666,mode=620"), ("shm", "mode=1777")):
        (staging / name).mkdir()
        _mount("-t", "devpts" if name == "pts" else "tmpfs", "-o", options, name, str(staging / name))
    _mount("--move", str(staging), "/dev")


def _reap_forever() -> None:
    # sigtimedwait needs blocked signals. SIGCHLD has a handler, since POSIX permits to discard a blocked
    # signal whose default action is to ignore it.
    signals = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        received = signal.sigtimedwait(signals, 60)
        if received is not None and received.si_signo == signal.SIGTERM:
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def main(arguments: list[str]) -> int:
    """Prepare the namespaces, print ``ready``, then reap orphans until SIGTERM."""
    _mount("-t", "tmpfs", "-o", "mode=755,nosuid,nodev", "run", "/run")
    lab, state, *devices = arguments
    LAB_LINK.symlink_to(Path(state, lab))
    _private_dev(devices)
    process.run(
        ["ip", "link", "set", "lo", "up"],
        what="cannot prepare the lab's namespaces",
        timeout=timeouts.NAMESPACES,
    )
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    _reap_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
