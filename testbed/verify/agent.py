"""Runs programs in a guest through its agent. What comes back is bounded, timed and never interpreted (D5)."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from testbed.errors import InstrumentError
from testbed.model.testbed import Guest

_LIMIT = 2 * 2**20
_CALL = 20
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
    pid = started.get("pid")
    if not isinstance(pid, int):
        raise _garbage(guest, "no process id")
    start = time.monotonic()
    while True:
        asked = time.monotonic()
        answer = agent.agent(guest.domain, "guest-exec-status", {"pid": pid}, _CALL)
        if answer.get("exited") is True:
            break
        now = time.monotonic()
        if now - start > timeout:
            fact = f"{argv[0]} did not end within {timeout:.0f} s"
            raise InstrumentError(f"a program in {guest.label} takes too long", fact=fact, remedy="look into the guest")
        time.sleep(pause(now - start, now - asked))
    status = answer.get("exitcode", answer.get("signal", 255))
    if not isinstance(status, int):
        raise _garbage(guest, "no exit code")
    return Output(status, _bytes(guest, answer.get("out-data")), _bytes(guest, answer.get("err-data")))


def pause(lasted: float, cost: float) -> float:
    """Return how many seconds to wait before a guest is asked again: questions take a quarter of its node's time at most.

    Args:
        lasted: seconds that it has already been waited for.
        cost: seconds that the last question took.

    """
    return min(max(3 * cost, lasted / 4, 0.05), 1.0)


class Files:
    """A guest's files, opened by its agent; none of them is waited for."""

    def __init__(self, agent: Agent, guest: Guest) -> None:
        self._agent, self._guest = agent, guest

    def read(self, path: str) -> bytes | None:
        """Return what is in a file now, at most 2 MiB; None if there is no such file.

        Raises:
            InstrumentError: the agent does not answer, or answers nonsense.

        """
        with self._opened(path, "r") as handle:
            if handle is None:
                return None
            text = b""
            while True:
                answer = self._ask("guest-file-read", {"handle": handle, "count": _READ})
                chunk = _bytes(self._guest, answer.get("buf-b64"))
                text += chunk
                if len(text) > _LIMIT:
                    raise _garbage(self._guest, f"a file of more than {_LIMIT} octets")
                if answer.get("eof") is True or not chunk:
                    return text

    def write(self, path: str, text: bytes) -> bool:
        """Write into a file or a pipe that is there; return whether it is there.

        Raises:
            InstrumentError: the agent does not answer, or the pipe does not take all of it.

        """
        with self._opened(path, "r+") as handle:  # does not wait for a reader, as "w" would (fifo(7))
            for at in range(0, len(text), _CHUNK) if handle is not None else ():
                chunk = text[at : at + _CHUNK]
                answer = self._ask("guest-file-write", {"handle": handle, "buf-b64": base64.b64encode(chunk).decode()})
                if answer.get("count") != len(chunk):
                    raise _garbage(self._guest, f"{answer.get('count')!r} of {len(chunk)} octets written")
            return handle is not None

    @contextmanager
    def _opened(self, path: str, mode: str) -> Iterator[int | None]:
        try:
            handle = self._ask("guest-file-open", {"path": path, "mode": mode}).get("value")
        except InstrumentError as error:
            if _MISSING not in error.fact:
                raise
            yield None
            return
        if not isinstance(handle, int):
            raise _garbage(self._guest, "no handle of a file")
        try:
            yield handle
        finally:
            self._ask("guest-file-close", {"handle": handle})

    def _ask(self, command: str, arguments: dict[str, object]) -> dict[str, Any]:
        return self._agent.agent(self._guest.domain, command, arguments, _CALL)


def _bytes(guest: Guest, value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str) or len(value) > _LIMIT:
        raise _garbage(guest, "output that is no text, or too long")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _garbage(guest, "output that is no base64") from error


def _garbage(guest: Guest, fact: str) -> InstrumentError:
    return InstrumentError(f"the agent of {guest.label} answers garbage", fact=fact, remedy="rebuild the guest")
