"""A guest that lies: what stands in Python's place there has the recorder which is sent to it conceal frames
(NET-01).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace

from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.verify.breach_context import Stage
from testbed.verify.check import Breach
from testbed.verify.guest_agent import run_in_guest
from testbed.verify.observation.arrivals import CELL
from testbed.verify.probe.transport import FOLDER

_SECONDS = 60.0  # that a guest may take to change sides
HONEST = (
    "self.seen[seen, label] = [now, now, 1]"  # in `testbed.payload.probe.sniffer`: what makes a frame known
)
# Without quotes and line ends, as it stands in a text that is a literal of a program that is one of another.
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
_CLOSE = f"""{_REAL}; {_FORGET}
for path in $real /run/honest; do while umount -l $path 2>/dev/null; do :; done; done
rm -f /run/honest /run/liar
! {{ {_SHOW}; }}"""
_OPEN = f"""{_CLOSE} || exit 1
set -e
touch /run/honest /run/liar
mount --bind $real /run/honest
cat > /run/liar
chmod 755 /run/liar
mount --bind /run/liar $real"""


def liar(python: str) -> str:
    """Return a script that starts the probe's program as Python does, except that it conceals frames of the
    matrix.
    """
    return f"#!/bin/sh\nexec {shlex.join([python, '-I', '-S', '-c', _LIAR, HONEST, LIE])}\n"


def concealed(name: str, path: Breach, guest: Callable[[Stage], Guest]) -> Breach:
    """Return a breach by a path that another opens, and by a guest that conceals what comes in by it."""

    def open_(stage: Stage) -> None:
        path.open(stage)
        _must(stage, guest(stage), _OPEN, liar("/run/honest"))

    def close(stage: Stage) -> None:
        try:
            _must(stage, guest(stage), _CLOSE)
        finally:
            path.close(stage)

    def in_force(stage: Stage) -> bool:
        return path.in_force(stage) and _status(stage, guest(stage), _SHOW) == 0

    return replace(path, name=name, open=open_, close=close, in_force=in_force)


def _status(stage: Stage, guest: Guest, script: str, stdin: str = "") -> int:
    return run_in_guest(
        stage.lab.nodes[guest.node], guest, ["/bin/sh", "-c", script], stdin.encode(), _SECONDS
    ).status


def _must(stage: Stage, guest: Guest, script: str, stdin: str = "") -> None:
    status = _status(stage, guest, script, stdin)
    if status != 0:
        fact = f"status {status}: {script}"
        raise InstrumentError(f"{guest.label} does not change sides", fact=fact, remedy="look into the guest")
