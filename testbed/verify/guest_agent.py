"""Runs programs in a guest through its agent. What comes back is bounded, timed and never interpreted
(D5).
"""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.untrusted import bounded_json

_LIMIT = 2 * 2**20
_CALL = 20
_FILE = 60.0  # seconds that a whole file may take
_CHUNK = 2**15  # octets written at once; a pipe takes them as a whole
_READ = 2**19  # octets read at once
_MISSING = "No such file or directory"


class Agent(Protocol):
    """Who passes commands to a guest's agent."""

    def agent(self, name: str, command: str, arguments: dict[str, object], timeout: int) -> dict[str, Any]:
        """Return the agent's answer; raises InstrumentError."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a program in a guest gave back; untrusted."""

    status: int
    stdout: bytes
    stderr: bytes


def run_in_guest(agent: Agent, guest: Guest, argv: Sequence[str], stdin: bytes, timeout: float) -> Output:
    """Run a program in a guest to its end.

    Args:
        timeout: seconds until it must have ended.

    Raises:
        InstrumentError: the agent does not answer, answers nonsense, or the program does not end in time.

    """
    arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    if stdin:
        arguments["input-data"] = base64.b64encode(stdin).decode()
    started = agent.agent(guest.domain, "guest-exec", arguments, _CALL)
    pid = _whole(guest, started.get("pid"), "process id", 2**31)
    start = time.monotonic()
    while True:
        asked = time.monotonic()
        answer = agent.agent(guest.domain, "guest-exec-status", {"pid": pid}, _CALL)
        if answer.get("exited") is True:
            break
        now = time.monotonic()
        if now - start > timeout:
            fact = f"{argv[0]} did not end within {timeout:.0f} s"
            raise InstrumentError(
                f"a program in {guest.label} takes too long", fact=fact, remedy="look into the guest"
            )
        time.sleep(pause(now - start, now - asked))
    status = _whole(guest, answer.get("exitcode", answer.get("signal", 255)), "exit code", 255)
    return Output(status, _bytes(guest, answer.get("out-data")), _bytes(guest, answer.get("err-data")))


def pause(lasted: float, cost: float) -> float:
    """Return how many seconds to wait before a guest is asked again: questions take a quarter of its node's
    time at most.

    Args:
        lasted: seconds that it has already been waited for.
        cost: seconds that the last question took.

    """
    return min(max(3 * cost, lasted / 4, 0.05), 1.0)


class Files:
    """A guest's files, opened by its agent; none of them is waited for."""

    def __init__(self, agent: Agent, guest: Guest, clock: Callable[[], float] = time.monotonic) -> None:
        self._agent, self._guest, self._clock = agent, guest, clock

    def read(self, path: str) -> bytes | None:
        """Return what is in a file now, at most 2 MiB; None if there is no such file.

        Raises:
            InstrumentError: the agent does not answer, answers nonsense, or takes longer than a minute for
                all of it.

        """
        end = self._clock() + _FILE
        with self._opened(path, "r", end) as handle:
            if handle is None:
                return None
            text = bytearray()
            while True:
                answer = self._ask("guest-file-read", {"handle": handle, "count": _READ}, end)
                chunk = _bytes(self._guest, answer.get("buf-b64"))
                text += chunk
                if len(text) > _LIMIT:
                    raise _garbage(self._guest, f"a file of more than {_LIMIT} octets")
                if answer.get("eof") is True or not chunk:
                    return bytes(text)

    def write(self, path: str, text: bytes) -> bool:
        """Write into a file or a pipe that is there; return whether it is there.

        Raises:
            InstrumentError: the agent does not answer, or the pipe does not take all of it within a minute.

        """
        end = self._clock() + _FILE
        with self._opened(path, "r+", end) as handle:  # does not wait for a reader, as "w" would (fifo(7))
            for at in range(0, len(text), _CHUNK) if handle is not None else ():
                chunk = text[at : at + _CHUNK]
                answer = self._ask(
                    "guest-file-write", {"handle": handle, "buf-b64": base64.b64encode(chunk).decode()}, end
                )
                written = _whole(self._guest, answer.get("count"), "number of octets", len(chunk))
                if written != len(chunk):
                    raise _garbage(self._guest, f"{written} of {len(chunk)} octets written")
            return handle is not None

    @contextmanager
    def _opened(self, path: str, mode: str, end: float) -> Iterator[int | None]:
        try:
            answer = self._ask("guest-file-open", {"path": path, "mode": mode}, end)
        except InstrumentError as error:
            if _MISSING not in error.fact:
                raise
            yield None
            return
        handle = _whole(self._guest, answer.get("value"), "handle of a file", bounded_json.WHOLE)
        try:
            yield handle
        finally:
            self._ask("guest-file-close", {"handle": handle}, self._clock() + _CALL)

    def _ask(self, command: str, arguments: dict[str, object], end: float) -> dict[str, Any]:
        """Ask the agent, whose answer must be there at a time of our clock."""
        left = end - self._clock()
        if left <= 0:
            fact = f"{command} has not ended within {_FILE:.0f} s"
            raise InstrumentError(
                f"a file of {self._guest.label} takes too long", fact=fact, remedy="look into the guest"
            )
        return self._agent.agent(self._guest.domain, command, arguments, math.ceil(min(left, _CALL)))


def _bytes(guest: Guest, value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str) or len(value) > _LIMIT:
        raise _garbage(guest, "output that is no text, or too long")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _garbage(guest, "output that is no base64") from error


def _whole(guest: Guest, value: object, name: str, most: int) -> int:
    try:
        return bounded_json.whole(value, 0, most)
    except ValueError as error:
        raise _garbage(guest, f"no {name}: {error}") from error


def _garbage(guest: Guest, fact: str) -> InstrumentError:
    return InstrumentError(
        f"the agent of {guest.label} answers garbage", fact=fact, remedy="rebuild the guest"
    )
