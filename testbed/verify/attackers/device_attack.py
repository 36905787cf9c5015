"""An attack on virtual devices by a throw-away guest, which may die of it (BND-01)."""

from __future__ import annotations

import re
import time
from pathlib import Path

from testbed import payload, timeouts
from testbed.errors import InstrumentError
from testbed.verify.attackers.ephemeral_guest import Throwaway

WRITES = 200  # that an attack must reach; a guest may die of a few hundred
_PROGRAM = Path(payload.__file__).parent / "attacks/device_fuzz.py"
_SECONDS = 25.0  # of an attack
_STILL = 15.0  # seconds without a further write, after which a guest that has begun is dead
_PAUSE = 1.0  # seconds between two looks at the console
_LINES = 2000  # of the console, at most
_OVER = "attack over."
_TOLD = re.compile(r"(seed|writes)=(\d{1,10})\.")


def attack(stranger: Throwaway) -> int:
    """Let a guest attack its devices, and return how many writes its console has shown.

    One that dies before its attack was large enough is started again. It is not reset, since a reset waits
    for an emulator that the guest may have stopped as well.

    Args:
        stranger: a guest that is present and does not run.

    Raises:
        InstrumentError: the guest has made too few writes.
        ProvisioningError: it does not start.
    """
    program = f"{_PROGRAM.read_text()}\nattack({_SECONDS})\nprint({_OVER!r}, flush=True)\n"
    stranger.start_program(program)
    end = time.monotonic() + 2 * timeouts.EPHEMERAL_BOOT + _SECONDS
    look = f"grep -aoE '(seed|writes)=[0-9]+[.]|{_OVER}' {stranger.guest.console} | tail -n {_LINES}"
    earlier, text, seen = 0, "", time.monotonic()
    while time.monotonic() < end:
        time.sleep(_PAUSE)
        last, text = text, stranger.machine.read(look)
        if text != last:
            seen = time.monotonic()
        still = bool(text) and time.monotonic() > seen + _STILL
        if not still and _OVER not in text and stranger.node.hypervisor.runs(stranger.guest.domain):
            continue
        earlier, text = earlier + written(text), ""  # a guest that starts empties its console
        if earlier >= WRITES:
            break
        stranger.start_program(program)
    count = earlier + written(text)
    if count < WRITES:
        raise InstrumentError(
            "the attack on virtual devices was too small",
            fact=f"{count} of {WRITES} writes",
            remedy="repeat the check when the machine is less busy",
        )
    return count


def written(console: str) -> int:
    """Return the number of writes that a console shows, over all boots of its guest.

    Each boot begins with its seed, and then tells how many writes it has made so far.
    """
    total = largest = 0
    for word, number in _TOLD.findall(console):
        if word == "seed":
            total, largest = total + largest, 0
        else:
            largest = max(largest, int(number))
    return total + largest
