"""Runs programs in a guest through its agent. What comes back is bounded, timed and never interpreted (D5)."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from testbed.errors import InstrumentError
from testbed.model.testbed import Guest

_LIMIT = 2 * 2**20
_CALL = 20


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
    end = time.monotonic() + timeout
    while True:
        answer = agent.agent(guest.domain, "guest-exec-status", {"pid": pid}, _CALL)
        if answer.get("exited") is True:
            break
        if time.monotonic() > end:
            fact = f"{argv[0]} did not end within {timeout:.0f} s"
            raise InstrumentError(f"a program in {guest.label} takes too long", fact=fact, remedy="look into the guest")
        time.sleep(0.2)
    status = answer.get("exitcode", answer.get("signal", 255))
    if not isinstance(status, int):
        raise _garbage(guest, "no exit code")
    return Output(status, _bytes(guest, answer.get("out-data")), _bytes(guest, answer.get("err-data")))


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
