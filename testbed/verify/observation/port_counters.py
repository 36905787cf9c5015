"""What a node's kernel counts at its guests' interfaces, awaited there: every look from here costs a node a
third of a second.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from testbed.verify.fleet import Machine
from testbed.verify.probe.client import broken

_LATE = 20.0  # seconds beyond its patience that the node may take to answer
# Nothing in these loops is a program of its own: a shell that reads a pipe to which nobody writes is one that
# sleeps.
_AWAIT = """
frames=$1 rate=$2 patience=$3; shift 3
exec 3<> <(:)
declare -A first
start=${EPOCHREALTIME/./}
for file; do read -r first[$file] < $file || exit 1; done
for file; do
  while read -r now < $file || exit 1; (( now - first[$file] < frames + rate * (${EPOCHREALTIME/./} - start) / 1000000 )); do
    (( SECONDS < patience )) || { echo $file; break; }
    read -r -t 0.2 -u 3
  done
done
exit 0
"""  # noqa: E501 - lines of a program
RECEIVED, SENT = (
    "tx_packets",
    "rx_packets",
)  # by a guest: what its interface takes in, the node's end gives out


def await_frames(
    machine: Machine,
    taps: Sequence[str],
    frames: float,
    patience: float,
    counter: str = SENT,
    *,
    rate: float = 0,
) -> None:
    """Return when each of some interfaces has counted some more frames.

    Args:
        counter: `SENT` or `RECEIVED` by the guest.
        patience: seconds that this may take, for all of them together.
        rate: for each second that passes meanwhile, so many frames more are awaited.

    Raises:
        InstrumentError: one has not in time, or the node cannot be asked.

    """
    if not taps:
        return
    files = [f"/sys/class/net/{tap}/statistics/{counter}" for tap in taps]
    argv = ["bash", "-c", _AWAIT, "await", f"{frames:.0f}", f"{rate:.0f}", f"{patience:.0f}", *files]
    late = machine.read(shlex.join(argv), timeout=patience + _LATE)
    if late:
        idle = ", ".join(file.split("/")[4] for file in late.split())
        raise broken(
            f"guests on {machine.name} are too quiet",
            f"less than {frames:.0f} frames passed {idle} within {patience:.0f} s",
        )
