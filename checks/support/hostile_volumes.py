"""Guests that overwrite the beginning of their first volume for a while, and put the old octets back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from checks.support.judging import judging
from testbed import payload
from testbed.model.topology import Guest
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.storage import encryption

PROGRAM = Path(payload.__file__).parent / "volume_encryption.py"
_TIMEOUT = 180.0  # seconds

HEAD = 8192  # octets at the beginning of a volume that are overwritten
VOLUME = "/dev/vdb"  # in a guest: the first of its volumes
_SAVED, _TIMER = "/run/testbed.head", "/run/testbed.head.timer"  # octets, and a process id
_KILLED_AFTER = 600  # seconds
WRITE = f"dd of={VOLUME} bs={HEAD} conv=notrunc,fsync"
_BACK = f"[ ! -e {_SAVED} ] || {{ {WRITE} <{_SAVED} && rm -f {_SAVED}; }}"
_STOP = f"p=$(cat {_TIMER}); grep -q {_TIMER} /proc/$p/cmdline && kill -- -$p; rm -f {_TIMER}"
SAVE = (
    f"{_STOP}; [ -e {_SAVED} ] || "
    f"{{ dd if={VOLUME} of={_SAVED}.new bs={HEAD} count=1 && mv {_SAVED}.new {_SAVED}; }} || exit 1; "
    f"setsid /bin/sh -c 'sleep {_KILLED_AFTER}; {_BACK}; rm -f {_TIMER}' </dev/null >/dev/null 2>&1 & "
    f"echo $! >{_TIMER}"
)
RESTORE = f"{{ {_BACK}; }} || exit 1; {_STOP}"


@contextmanager
def overwritten(fleet: Fleet, guests: Sequence[Guest], content: Callable[[Guest], bytes]) -> Iterator[None]:
    """Let guests write into their first volume for the duration of the block.

    A program in each guest writes the old octets back if this process is killed.

    Args:
        guests: those with a volume.
        content: what a guest writes, at most `HEAD` octets; zeros follow.
    """
    with ExitStack() as stack:
        for guest in guests:
            _run(fleet, guest, SAVE)  # before anything is registered: it fails in a guest that is silent
            stack.enter_context(
                fleet.leavings.made(
                    f"the header in the volume of {guest.label}", partial(_run, fleet, guest, RESTORE)
                )
            )
            _run(fleet, guest, WRITE, content(guest).ljust(HEAD, b"\0"))
        yield


def require_written(fleet: Fleet, node: MachineView, written: Mapping[Guest, bytes]) -> None:
    """Require that volumes begin with what their guests have written, as the node reads them with their keys.

    Args:
        written: at most `HEAD` octets of each guest; zeros follow.

    Raises:
        InstrumentError: a volume begins with something else.
    """
    if not written:
        return
    volumes = [[guest.disks[1], {encryption.OWN: fleet.volume_key(guest).decode()}] for guest in written]
    request = {"volumes": volumes, "head": HEAD, "texts": {}, "places": []}
    answer = node.python(PROGRAM.read_text(), request, _TIMEOUT, function="collect")
    with judging(f"the volumes on {node.name}"):
        encryption.require_readable(
            answer, {guest.disks[1]: octets.ljust(HEAD, b"\0").hex() for guest, octets in written.items()}
        )


def _run(fleet: Fleet, guest: Guest, commands: str, stdin: bytes = b"") -> None:
    fleet.in_guest(guest, ["/bin/sh", "-c", f"exec 2>/dev/null; {commands}"], stdin)
