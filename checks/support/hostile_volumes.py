"""Guests that overwrite the beginning of their first volume for a while, and put the old octets back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from testbed.model.topology import Guest
from testbed.verify.fleet import Fleet

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


def _run(fleet: Fleet, guest: Guest, commands: str, stdin: bytes = b"") -> None:
    fleet.in_guest(guest, ["/bin/sh", "-c", f"exec 2>/dev/null; {commands}"], stdin)
