"""What a node's program reports of the pulse of its guests, and what is wrong with it (DOS-01). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from testbed.hosts.rules import UnseenError
from testbed.untrusted.answers import formed

LOSS = 0.1  # share of questions of a quiet guest that may stay without an answer
STOOD = 1.0  # seconds by which a node's clock may jump while a missing answer still says something
_LEAST = 5  # beats, below which nothing was observed
_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WirePulse(_Form):
    """Questions on one interface.

    Args:
        asked: how many.
        answered: seconds until the answer, by number of the question.
    """

    asked: _Count
    answered: dict[_Count, _Seconds]

    @property
    def lost(self) -> int:
        """Questions without an answer."""
        return self.asked - len(self.answered)


class GuestPulse(_Form):
    """The pulse of one guest.

    Args:
        worker: process id and start time of its worker at the beginning and at the end; 0 if there is none.
        ran: beats after which its processors had run since the one before.
        wires: by name of the interface.
    """

    worker: tuple[_Count, _Count, _Count, _Count]
    ran: tuple[_Count, ...]
    wires: dict[str, WirePulse]

    @property
    def stays(self) -> bool:
        """Whether one worker was there all the time."""
        return bool(self.worker[0]) and self.worker[:2] == self.worker[2:]


class NodePulse(_Form):
    """The pulse of a node's guests.

    Args:
        beats: how many were taken.
        stood: longest time in seconds by which the node's clock jumped.
        guests: by domain.
    """

    beats: _Count
    stood: _Seconds
    guests: dict[str, GuestPulse]


_ANSWER = TypeAdapter(NodePulse)


def parsed(answer: object) -> NodePulse:
    """Return the pulse that a node's program reports.

    Raises:
        UnseenError: the answer has another form.
    """
    try:
        return formed(_ANSWER, answer)
    except ValueError as error:
        raise UnseenError(str(error)) from error


def lost(pulse: NodePulse, names: dict[str, str]) -> list[str]:
    """Return which guests do not run, or do not answer.

    Args:
        names: label by domain, of all guests that must be there.

    Raises:
        UnseenError: too little was observed, or the node stood still while a beat was missed.
    """
    missing = names.keys() - pulse.guests.keys()
    if missing or pulse.beats < _LEAST:
        raise UnseenError(f"{pulse.beats} beats were taken, without {', '.join(sorted(missing)) or 'gaps'}")
    found = [
        text for domain, name in names.items() for text in _lost(pulse.guests[domain], name, pulse.beats)
    ]
    if found and pulse.stood > STOOD:
        raise UnseenError(f"the node stood still for {pulse.stood:.1f} s meanwhile: {'; '.join(found)[:300]}")
    return found


def _lost(guest: GuestPulse, name: str, beats: int) -> list[str]:
    if not guest.stays:
        return [f"the worker of {name} has ended, or is another one"]
    if not guest.ran:
        return [f"the processors of {name} did not run during {beats} beats"]
    return [
        f"{name} answers {wire.asked - wire.lost} of {wire.asked} questions at {tap}"
        for tap, wire in guest.wires.items()
        if wire.lost > LOSS * wire.asked
    ]


@dataclass(frozen=True, slots=True)
class Written:
    """A guest's write to its disk, and what its QEMU counted meanwhile.

    Args:
        status: of the guest's program; None if it did not end in time.
        fact: why not.
        operations: of all disks before the write, when its time was over, and some seconds later.
        waits: whether the guest had operations in progress then, at both times.
        seconds: that the write took.
    """

    name: str
    status: int | None
    fact: str
    operations: tuple[int, int, int]
    waits: bool
    seconds: float


def unwritten(writes: list[Written], stood: float) -> list[str]:
    """Return which guests cannot write to their disks.

    Args:
        stood: longest time in seconds by which the node's clock jumped.

    Raises:
        UnseenError: a write failed for another reason than its disk, or is only slow.
    """
    found, unseen = [], []
    for write in writes:
        before, over, later = write.operations
        if write.status == 0 and over > before:
            continue
        if write.status is None and write.waits and over == later and stood <= STOOD:
            found.append(f"a write of {write.name} is held: none of its operations ends ({write.fact})")
        else:
            ended = f"status {write.status}" if write.status is not None else write.fact
            unseen.append(f"{write.name}: {ended}, {over - before} operations, then {later - over}")
    if unseen and not found:
        raise UnseenError(f"writes are not seen: {'; '.join(unseen)[:400]}")
    return found
