"""Whether a parser breaks off or stands still at some octets."""

from __future__ import annotations

import signal
import traceback

from tests.fuzz.targets import Target

LONGEST = 5.0  # seconds of a processor for one input


class TooSlow(BaseException):
    """A parser has taken `LONGEST` seconds of a processor."""


def _too_slow(*_: object) -> None:
    raise TooSlow


def crash(target: Target, data: bytes) -> str:
    """Return the last lines of a traceback if a parser raises what it may not, or is too slow; else ""."""
    former = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, LONGEST, 0.2)  # again: a callback may swallow it
    try:
        target.parse(data)
    except target.errors:
        return ""
    except (Exception, TooSlow):  # noqa: BLE001 - any other one is a crash
        return "".join(traceback.format_exc().splitlines(keepends=True)[-6:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)
    return ""
