"""A guest that conceals frames, by a script in place of its Python interpreter (NET-01).

The script patches the recorder that is sent to the guest.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace

from testbed import timeouts
from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach
from testbed.verify.guest_agent import run_in_guest
from testbed.verify.observation.arrivals import CELL
from testbed.verify.probe.transport import FOLDER

_SECONDS = timeouts.TAMPERING
HONEST = "self.seen[seen, label] = [now, now, 1]"  # in `testbed.payload.probe.sniffer`: records a frame
# Without quotes and line ends: the text is inside a literal of a program that is itself a literal.
LIE = (
    f"self.seen.update({{}} if self.prefix + bytes({tuple(CELL.encode())}).decode() in seen.token else "
    "{(seen, label): [now, now, 1]})"
)
_LIAR = (
    "import sys, zlib; honest, lie = (word.encode() for word in sys.argv[1:]); "
    "exec(zlib.decompress(sys.stdin.buffer.read()).replace(honest, lie))"
)
_REAL = "real=$(readlink -f /usr/bin/python3)"
_SHOW = f'{_REAL}; [ "$(head -c 2 $real)" = "#!" ]'
_FORGET = f"kill -9 $(cat {FOLDER}/pid 2>/dev/null) 2>/dev/null; rm -rf {FOLDER}"
# Removes all bind mounts and kills the probe, so that the next probe starts with the real interpreter.
_CLOSE = f"""{_REAL}; {_FORGET}
for path in $real /run/honest; do while umount -l $path 2>/dev/null; do :; done; done
rm -f /run/honest /run/liar
! {{ {_SHOW}; }}"""
# Bind mounts leave the interpreter's file unchanged: a reboot of the guest reverts them as well.
_OPEN = f"""{_CLOSE} || exit 1
set -e
touch /run/honest /run/liar
mount --bind $real /run/honest
cat > /run/liar
chmod 755 /run/liar
mount --bind /run/liar $real"""


def liar(python: str) -> str:
    """Return a script that starts the probe with a recorder that conceals matrix frames."""
    return f"#!/bin/sh\nexec {shlex.join([python, '-I', '-S', '-c', _LIAR, HONEST, LIE])}\n"


def concealed(name: str, path: Breach, guest: Callable[[BreachContext], Guest]) -> Breach:
    """Return a breach that opens a path by another breach, to a guest that conceals frames."""

    def open_(context: BreachContext) -> None:
        path.open(context)
        _must(context, guest(context), _OPEN, liar("/run/honest"))

    def close(context: BreachContext) -> None:
        try:
            _must(context, guest(context), _CLOSE)
        finally:
            path.close(context)

    def in_force(context: BreachContext) -> bool:
        return path.in_force(context) and _status(context, guest(context), _SHOW) == 0

    return replace(path, name=name, open=open_, close=close, in_force=in_force)


def _status(context: BreachContext, guest: Guest, script: str, stdin: str = "") -> int:
    return run_in_guest(
        context.lab.nodes[guest.node], guest, ["/bin/sh", "-c", script], stdin.encode(), _SECONDS
    ).status


def _must(context: BreachContext, guest: Guest, script: str, stdin: str = "") -> None:
    status = _status(context, guest, script, stdin)
    if status != 0:
        fact = f"status {status}: {script}"
        raise InstrumentError(f"{guest.label} does not change sides", fact=fact, remedy="look into the guest")
