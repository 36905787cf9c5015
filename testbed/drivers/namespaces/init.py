"""First process of a lab's namespaces: keeps them alive, gives them a private /run and /dev, reaps orphans.

Runs as ``python -m testbed.drivers.namespaces.init LAB STATE [DEVICE[:GROUP] …]`` in new network, mount and
process namespaces. When it ends, the kernel ends everything in them; so taking a lab down is one kill (D2).
Device nodes that are not named are not there: a guest's emulator never sees the outer machine's disks, and
an accelerator that does not work is out of sight (D7).
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

from testbed.drivers.host import process
from testbed.errors import MachineError

READY = "ready"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun")


def _mount(*arguments: str) -> None:
    process.run(
        ["mount", *arguments], what="cannot prepare the lab's namespaces", timeout=30, error=MachineError
    )


def _made(device: Path, target: Path, group: int) -> bool:
    """Make a node of a device that a group may open, and tell whether we may make one."""
    try:
        os.mknod(target, stat.S_IFCHR | 0o660, device.stat().st_rdev)
    except PermissionError:
        return False
    os.chown(target, 0, group)
    target.chmod(0o660)
    return True


def _private_dev(extra: list[str]) -> None:
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
    """Prepare the namespaces, say so on standard output, then reap until told to end."""
    _mount("-t", "tmpfs", "-o", "mode=755,nosuid,nodev", "run", "/run")
    _private_dev(arguments[2:])
    process.run(["ip", "link", "set", "lo", "up"], what="cannot prepare the lab's namespaces", timeout=30)
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    _reap_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
