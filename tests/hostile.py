"""Guests and machines that do everything to keep us waiting, to fill our memory, or to speak in our name."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from typing import Any

from testbed.errors import InstrumentError
from testbed.payload.probe import wire

WORDS = "\x1b[31m\r\n::error::said by a guest\n##vso[task.complete]\\[/x]\u202e"


class Clock:
    """Time that passes when a question is asked, so that hours are over at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class HostileAgent:
    """A guest's agent as libvirt shows it: each question costs time, and may have an answer.

    Args:
        answers: by command, what it answers; an exception is raised. A function is asked each time.
        cost: seconds of each answer; libvirt gives up after the time-out of the question.

    """

    def __init__(self, clock: Clock, answers: dict[str, Any], cost: float = 0.1) -> None:
        self.clock, self.answers, self.cost = clock, answers, cost
        self.asked: list[str] = []

    def agent(self, name: str, command: str, arguments: dict[str, Any], timeout: int) -> dict[str, Any]:
        self.asked.append(command)
        self.clock.now += min(self.cost, timeout)
        if self.cost > timeout:
            raise InstrumentError(
                "the guest agent does not answer", fact=f"not within {timeout} s", remedy="-"
            )
        found = self.answers.get(command, {})
        answer = found(arguments) if isinstance(found, Callable) else found  # type: ignore[arg-type]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]


def piece(data: bytes, eof: object = False) -> dict[str, Any]:
    """Return an answer to ``guest-file-read``."""
    return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": eof}


def file(data: bytes) -> dict[str, Any]:
    """Return the answers of an agent whose every file holds these octets."""
    return {
        "guest-file-open": {"value": 1000},
        "guest-file-read": lambda _: piece(data, True),
        "guest-file-write": _taken,
    }


def _taken(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"count": len(base64.b64decode(arguments["buf-b64"]))}


def message(text: bytes) -> bytes:
    """Return a line as the probe writes it, with a text that need not be JSON."""
    return base64.b64encode(zlib.compress(text))


def nested(depth: int) -> bytes:
    """Return lists within one another."""
    return b"[" * depth + b"]" * depth


def bomb(values: int) -> bytes:
    """Return a message of many small objects."""
    return message(b'{"records":[' + b"{}," * values + b"{}]}")


OVERSIZE = message(b'"' + bytes(wire.MAX_MESSAGE) + b'"')
