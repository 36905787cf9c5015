"""Transports to a probe's program: a line goes into its pipe, and an answer returns.

On a machine, a shell does both. In a guest its agent opens the files itself: every program that a guest
starts costs its node a tenth of a second under emulation, and a request to the agent a quarter of that
(docs/decisions/0017).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from testbed import timeouts
from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.payload.probe import wire
from testbed.verify.fleet import Fleet
from testbed.verify.guest_agent import Files, pause
from testbed.verify.probe.budget import Allowance

FOLDER = "/run/testbed-probe"
# The probe holds a lock on its file `pid` while it runs. Opening the pipe for reading and writing does not
# block (fifo(7)); `cat` blocks until the probe opens the answer's pipe.
_ASK = """cd "$1" 2>/dev/null && ! flock -n pid true || { echo "the probe does not run" >&2; exit 75; }
mkfifo -m 600 "answer.$2" || exit 76
exec 3<> in
cat >&3
exec cat "answer.$2"
"""
_TELL = 'cd "$1" && exec 3<> in && cat >&3'
_TIDY = int(timeouts.PROBE_SHELL)
_TOLD = timeouts.PROBE_LINE
_DOUBT: float = timeouts.PROBE_SILENCE

Run = Callable[[list[str], bytes, float], bytes]
PollLock = AbstractContextManager[Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """How long an answer may take.

    Args:
        expected: seconds that are not charged.
        longest: seconds after which the request fails.
    """

    expected: float
    longest: float


class Transport(Protocol):
    """A way to one probe; its allowance limits the cost for the run."""

    allowance: Allowance

    def tell(self, line: bytes, timeout: float) -> None:
        """Send a line without waiting for an answer; raises InstrumentError."""

    def ask(self, name: str, line: bytes, wait: Wait, lock: PollLock) -> bytes:
        """Send a line and return the answer with the given name; raises InstrumentError."""


class ShellTransport:
    """Reaches a probe by running programs.

    Args:
        run: runs a program there with input, for at most `timeout` seconds, and returns its output.
    """

    def __init__(self, name: str, run: Run) -> None:
        self.allowance = Allowance(name)
        self._run = run

    def tell(self, line: bytes, timeout: float) -> None:
        """Send a line without waiting for an answer.

        Raises:
            InstrumentError: there is no pipe.
        """
        self._run(_shell(_TELL, timeout), line, timeout + _TIDY)

    def ask(self, name: str, line: bytes, wait: Wait, lock: PollLock) -> bytes:  # noqa: ARG002 - it waits without polling
        """Send a line and return the answer with the given name.

        Raises:
            InstrumentError: the probe does not run, or does not answer in time.
        """
        with self.allowance.question(wait.expected):
            return self._run(_shell(_ASK, wait.longest + _TIDY, name), line, wait.longest + 2 * _TIDY)


def _shell(script: str, timeout: float, *arguments: str) -> list[str]:
    return ["/usr/bin/timeout", f"{timeout:.0f}", "/bin/sh", "-c", script, "probe", FOLDER, *arguments]


class AgentTransport:
    """Reaches the probe in a guest through its agent, by polling for the answer's file."""

    def __init__(self, fleet: Fleet, guest: Guest) -> None:
        self.allowance = Allowance(guest.label)
        self._evidence, self._guest = fleet.evidence, guest
        self._files: Files = fleet.files_of(guest)

    def tell(self, line: bytes, timeout: float) -> None:  # noqa: ARG002 - the agent's own limit is shorter
        """Send a line without waiting for an answer.

        Raises:
            InstrumentError: there is no pipe, or the agent does not answer.
        """
        if not self._files.write(f"{FOLDER}/in", line):
            raise self._silent()

    def ask(self, name: str, line: bytes, wait: Wait, lock: PollLock) -> bytes:
        """Send a line and return the answer with the given name.

        Args:
            lock: held while the answer is polled: of several guests with the same request, one is polled at
                a time.

        Raises:
            InstrumentError: the probe does not run, does not answer in time, or the agent does not answer.
        """
        started = time.time()
        try:
            with self.allowance.question(_TOLD):
                self.tell(line, wait.longest)
            with lock, self.allowance.question(wait.expected):  # others' turns are not charged
                answer = self._wait(f"{FOLDER}/answer.{name}", wait.longest)
        except InstrumentError as error:
            self._record(line, f"did not complete: {error.fact}", started)
            raise
        self._record(line, shown(answer)[:20_000], started)
        return answer

    def _wait(self, path: str, timeout: float) -> bytes:
        start, doubt = time.monotonic(), _DOUBT
        while True:
            asked = time.monotonic()
            answer = self._files.read(path)
            if answer is not None:
                return answer
            cost, lasted = time.monotonic() - asked, time.monotonic() - start
            if lasted > timeout:
                fact = f"no answer within {timeout:.0f} s"
                raise InstrumentError(
                    f"the probe in {self._guest.label} takes too long",
                    fact=fact,
                    remedy="look into the guest",
                )
            if lasted > doubt:
                doubt = lasted + _DOUBT
                if not self._runs():
                    raise self._silent()
            time.sleep(pause(lasted, cost))

    def _runs(self) -> bool:
        """Return whether the probe holds the lock on its file, as long as it runs (proc_locks(5))."""
        pid, locks = self._files.read(f"{FOLDER}/pid"), self._files.read("/proc/locks")
        held = [line.split() for line in (locks or b"").splitlines()]
        return any(words[1:2] == [b"FLOCK"] and words[4:5] == [pid] for words in held)

    def _silent(self) -> InstrumentError:
        fact = f"nobody reads {FOLDER}/in, or holds the lock that tells of it"
        return InstrumentError(
            f"the probe does not run in {self._guest.label}", fact=fact, remedy="repeat the check"
        )

    def _record(self, line: bytes, answer: str, started: float) -> None:
        self._evidence.record(
            self._guest.label, "guest", f"the probe is asked ({len(line)} bytes)", answer, started
        )


def shown(text: bytes) -> str:
    """Return an answer of the probe as text for the evidence."""
    try:
        return wire.inflate(text.strip()).decode(errors="replace")
    except ValueError:
        return text.decode(errors="replace")
