"""Requests to the probe's program, as `testbed.payload.probe.main` reads them.

Each names its phase. They are dictionaries at run time, since they are sent as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

Line = Mapping[str, object]  # one frame, question or use of a service, as sender and scanner read it


class Start(TypedDict):
    """Start the program; it ends by itself after `patience` seconds without a request."""

    phase: Literal["start"]
    folder: str
    patience: float


class Stop(TypedDict):
    """End the program."""

    phase: Literal["stop"]


class Listen(TypedDict):
    """Record incoming frames; interfaces have `patience` seconds to get addresses.

    Args:
        token: the beginning of the tokens that count.
        known: MAC addresses of the lab; frames of all others are recorded too.
        tcp: ports to listen on; `udp` likewise.

    """

    phase: Literal["listen"]
    token: str
    interfaces: Sequence[Mapping[str, str]]
    patience: float
    known: NotRequired[Sequence[str]]
    tcp: NotRequired[Sequence[int]]
    udp: NotRequired[Sequence[int]]


class ListenAtTaps(TypedDict):
    """Record what a node hands to its guests by taps."""

    phase: Literal["listen"]
    token: str
    taps: Sequence[str]


class Glance(TypedDict):
    """Return which tokens have come in so far."""

    phase: Literal["glance"]
    token: str


class Finish(TypedDict):
    """End the recording and return its records.

    Before that, wait for one token of each list in `awaited`, for `patience` seconds at most.
    """

    phase: Literal["finish"]
    token: str
    awaited: NotRequired[Sequence[Sequence[str]]]
    patience: NotRequired[float]


class Send(TypedDict):
    """Send each probe as often as it says; `budget` is in seconds, for all of them."""

    phase: Literal["send"]
    probes: Sequence[Line]
    budget: NotRequired[float]


class Stream(TypedDict):
    """Send all frames over and over, until a `halt` or for `duration` seconds.

    Args:
        spacing: seconds between two frames.
        pause: seconds between two rounds.
        rounds: how many, if not any number.

    """

    phase: Literal["stream"]
    probes: Sequence[Line]
    duration: float
    spacing: float
    pause: NotRequired[float]
    rounds: NotRequired[int]


class Hold(TypedDict):
    """Talk with a service until a `release`; a `turn` changes the token that is sent."""

    phase: Literal["hold"]
    kind: str
    mac: str
    address: str
    ip: str
    port: int
    tokens: Sequence[str]
    duration: float


class Knock(TypedDict):
    """Ask many services at once; answers have `window` seconds."""

    phase: Literal["knock"]
    probes: Sequence[Line]
    window: float


class Beat(TypedDict):
    """Notice how long the machine stands still, until a `rest` or for `duration` seconds."""

    phase: Literal["beat"]
    duration: float


class Signal(TypedDict):
    """End a stream, a conversation or a beat that runs, or turn a conversation."""

    phase: Literal["halt", "rest", "turn", "release"]


Request = Listen | ListenAtTaps | Glance | Finish | Send | Stream | Hold | Knock | Beat | Signal
