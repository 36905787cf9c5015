"""The probe's program: how it is sent into guests and machines, and how its answers are read.

What comes back from a guest is hostile: it is JSON of bounded size, or nothing was observed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import InstrumentError
from testbed.model.policy import Endpoint
from testbed.model.testbed import Guest
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.frames import Frame

WINDOW = 3.0  # seconds waited after the last frame was sent
LIFE = 600.0  # seconds after which a forgotten recorder ends by itself
CALL = 300.0  # seconds that one phase may take
BUDGET = CALL - 60  # seconds of them for sending
_PROGRAM = Path(__file__).parents[1] / "guest/probe.py"
_SOUND = {"alive": True, "overflowed": False, "dropped": 0}

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Probe:
    """One frame, or one use of a service.

    Args:
        mark: what distinguishes it from every other probe of the run; lower-case letters and digits.
        fields: what `testbed.guest.probe` is told, besides the sender.
        frame: the frame; None for the use of a service.
    """

    mark: str
    sender: Endpoint
    fields: Mapping[str, object]
    frame: Frame | None = None


def compose(request: Mapping[str, object]) -> bytes:
    """Return the program to feed to ``python3 -``: the probe, with one request."""
    return f"{_PROGRAM.read_text()}\nraise SystemExit(main(json.loads({json.dumps(request)!r})))\n".encode()


def call_guest(fleet: Fleet, guest: Guest, request: Mapping[str, object], timeout: float = CALL) -> dict[str, Any]:
    """Run one phase of the probe in a guest and return its answer, which is untrusted.

    Raises:
        InstrumentError: there is none within so many seconds, or it is garbage.
    """
    text = fleet.in_guest(guest, ["/usr/bin/python3", "-"], compose(request), timeout=timeout)
    return _answer(guest.label, text)


def call_machine(machine: Machine, request: Mapping[str, object]) -> dict[str, Any]:
    """Run one phase of the probe on a machine and return its answer.

    Raises:
        InstrumentError: there is none, or it is garbage.
    """
    return _answer(machine.name, machine.read("python3 -", stdin=compose(request), timeout=CALL).encode())


def _answer(name: str, text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InstrumentError(f"the probe in {name} answers garbage", fact=repr(text[:120]), remedy="repeat the check") from error
    if not isinstance(answer, dict):
        raise InstrumentError(f"the probe in {name} answers garbage", fact=type(answer).__name__, remedy="repeat the check")
    return answer


def everywhere(fleet: Fleet, guests: Sequence[Guest], requests: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, Any]]:
    """Make one call in each guest, side by side; nodes run one call at a time best, so the number is bounded."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = pool.map(lambda guest: call_guest(fleet, guest, requests[guest.label]), guests)
        return {guest.label: answer for guest, answer in zip(guests, answers, strict=True)}


def listed(answer: Mapping[str, Any], key: str) -> list[Record]:
    """Return a list of an untrusted answer without what does not belong in it."""
    found = answer.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def results_of(sent: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Record]]:
    """Return what became of each probe, by guest and mark."""
    return {label: {str(item.get("id")): item for item in listed(answer, "results")} for label, answer in sent.items()}


def lines(probes: Sequence[Probe], prefix: str) -> list[dict[str, object]]:
    """Return probes as the guest's program reads them."""
    return [_line(item, f"{prefix}{item.mark}.") for item in probes]


def _line(probe: Probe, token: str) -> dict[str, object]:
    line: dict[str, object] = {"id": probe.mark, "mac": probe.sender.mac, **probe.fields}
    if probe.frame is not None:
        return {**line, "kind": "frame", "frame": probe.frame(token.encode()).hex()}
    return {**line, "token": token, "address": str(probe.sender.address)}


def broken(what: str, fact: str) -> InstrumentError:
    """Return the error of an observation that does not count."""
    return InstrumentError(what, fact=fact, remedy="run `testbed status`, then repeat the check")


def require_receiver(name: str, answer: Mapping[str, Any], **more: object) -> None:
    """Return if a recorder lived through its window and lost nothing.

    Args:
        more: what else its answer must say.

    Raises:
        InstrumentError: it cannot vouch for the whole window.
    """
    wanted = {**_SOUND, **more}
    facts = {fact: answer.get(fact) for fact in wanted}
    if facts != wanted:
        raise broken(f"the recorder in {name} cannot vouch for the whole window", str(facts))


def require_sent(probes: Sequence[Probe], results: Mapping[str, Mapping[str, Record]]) -> None:
    """Return if every probe left its sender.

    Raises:
        InstrumentError: one did not.
    """
    for probe in probes:
        result = results[probe.sender.guest].get(probe.mark, {})
        if result.get("sent") is not True:
            raise broken(f"{probe.sender.guest} could not send {probe.mark}", str(result.get("error", "no answer")))


def wait_out() -> None:
    """Return when nothing that was sent can be on its way any more."""
    time.sleep(WINDOW)
