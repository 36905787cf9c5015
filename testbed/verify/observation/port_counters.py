"""Waits on a node for the frame counters of its guests' interfaces.

The node itself polls them: each command from here costs a node a third of a second.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from testbed import timeouts
from testbed.verify.fleet import MachineView
from testbed.verify.probe.client import inconclusive

_LATE = timeouts.COUNTERS
# The loops start no program: reading from a pipe without a writer (descriptor 3) with a timeout is the sleep.
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
)  # from the guest's view: its node's end of the interface transmits what the guest receives


def await_frames(
    machine: MachineView,
    taps: Sequence[str],
    frames: float,
    patience: float,
    counter: str = SENT,
    *,
    rate: float = 0,
) -> None:
    """Wait until each of some interfaces has counted a number of further frames.

    Args:
        counter: `SENT` or `RECEIVED` by the guest.
        patience: seconds that this may take, for all of them together.
        rate: further frames to wait for, per second that passes.

    Raises:
        InstrumentError: an interface has not in time, or the node cannot be asked.
    """
    if not taps:
        return
    files = [f"/sys/class/net/{tap}/statistics/{counter}" for tap in taps]
    argv = ["bash", "-c", _AWAIT, "await", f"{frames:.0f}", f"{rate:.0f}", f"{patience:.0f}", *files]
    late = machine.read(shlex.join(argv), timeout=patience + _LATE)
    if late:
        idle = ", ".join(file.split("/")[4] for file in late.split())
        raise inconclusive(
            f"guests on {machine.name} are too quiet",
            f"less than {frames:.0f} frames passed {idle} within {patience:.0f} s",
        )
