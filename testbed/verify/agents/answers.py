"""Judges answers of hostile agents, and what they leave in memory and logs (DEV-03). Pure."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from testbed.errors import TestbedError
from testbed.hosts.rules import UnseenError
from testbed.untrusted.text import line, passed_on
from testbed.verify.guest_agent import Output

PATIENCE = 10.0  # seconds in which the agents of other guests must answer: the time-out of a ping
_LEAST = 2  # pings of each guest, below which nothing was observed


@dataclass(frozen=True, slots=True)
class Answered:
    """One question to a hostile agent.

    Args:
        seconds: how long it took.
        limit: seconds within which it must have ended.
        right: the answer that is allowed; the empty string for output of a program, None if only an error is.
    """

    name: str
    seconds: float
    limit: float
    answer: object
    error: Exception | None
    right: object


def faults(asked: Answered, names: tuple[str, ...]) -> list[str]:
    """Return why the tool has not stood a hostile answer.

    Args:
        names: names of the guest, one of which an error must have.
    """
    found = []
    if asked.seconds > asked.limit:
        found.append(f"the question took {asked.seconds:.1f} s of {asked.limit:.0f} s")
    if asked.error is None:
        found += _accepted(asked)
    elif not isinstance(asked.error, TestbedError):
        found.append(f"the tool fails with {type(asked.error).__name__}")
    else:
        text = str(asked.error)
        if not any(name in text for name in names):
            found.append(f"the error does not name the guest: {line(text, 200)}")
        if obeyed(text):
            found.append(f"its text is not escaped in the error: {obeyed(text)}")
        if asked.right is not None and asked.name in ("right", "next"):
            found.append(f"a right answer is refused: {line(text, 200)}")
    return [f"{asked.name}: {text}" for text in found]


def _accepted(asked: Answered) -> list[str]:
    if isinstance(asked.answer, Output) and asked.right == "":
        shown = obeyed(passed_on(asked.answer.stdout))
        return [f"its output is not escaped: {shown}"] if shown else []
    if asked.right is None or asked.answer != asked.right:
        return [f"the tool takes {line(str(asked.answer), 80)} for an answer"]
    return []


def obeyed(text: str) -> str:
    """Return the first part of a text that a terminal or a CI system would obey; the empty string if none."""
    for row in text.split("\n"):
        strange = next(
            (character for character in row if not character.isprintable() and character != "\t"), ""
        )
        if strange:
            return f"a character U+{ord(strange):04X}"
        if row.strip().startswith("::"):
            return "a line that begins with two colons"
        if "##vso[" in row:
            return "a command of a pipeline"
    return ""


@dataclass
class Pings:
    """Pings of other guests meanwhile; one thread writes."""

    slowest: dict[str, float] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def took(self, label: str, seconds: float) -> None:
        """Note an answer."""
        with self._lock:
            self.count[label] = self.count.get(label, 0) + 1
            self.slowest[label] = max(seconds, self.slowest.get(label, 0.0))

    def failed(self, label: str, fact: str) -> None:
        """Note a ping without an answer."""
        with self._lock:
            self.count[label] = self.count.get(label, 0) + 1
            self.silent[label] = fact

    def faults(self, before: Pings) -> list[str]:
        """Return which guests have not answered in their time.

        Args:
            before: pings while no hostile agent answered.

        Raises:
            UnseenError: a guest was asked too rarely, or guests were as slow before.
        """
        found = [
            f"{label} does not answer meanwhile: {line(fact, 120)}" for label, fact in self.silent.items()
        ]
        found += [
            f"the answer of {label} took {seconds:.1f} s meanwhile"
            for label, seconds in self.slowest.items()
            if seconds > PATIENCE
        ]
        slow = max(before.slowest.values(), default=0.0)
        if found and (before.silent or slow > PATIENCE / 2):
            raise UnseenError(f"other guests needed up to {slow:.1f} s before the hostile agent answered")
        rare = [label for label, number in self.count.items() if number < _LEAST]
        if not found and (rare or not self.count):
            raise UnseenError(f"other guests were asked too rarely: {self.count}")
        return found
