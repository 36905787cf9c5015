"""A throw-away guest whose agent is hostile, and the questions that the tool asks it (DEV-03)."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from testbed import payload, timeouts
from testbed.deadline import ProgressDeadline
from testbed.drivers.snapshots.guest_memory import require_identity
from testbed.errors import InstrumentError, TestbedError
from testbed.model.topology import Guest
from testbed.payload.attacks.hostile_agent import DOUBTFUL, ENDLESS, LAST, OBJECTS, PREFIX, TRUE
from testbed.untrusted.text import line
from testbed.verify.agents.answers import Answered, Pings
from testbed.verify.attackers.ephemeral_guest import Throwaway
from testbed.verify.fleet import Fleet
from testbed.verify.guest_agent import Files, run_in_guest

_PROGRAM = Path(payload.__file__).parent / "attacks/hostile_agent.py"
_LIFE = timeouts.EPHEMERAL_LIFE
_BOOT = 2 * timeouts.EPHEMERAL_BOOT  # it boots beside all guests of its node
_PING = int(timeouts.GUEST_PING)
_CALL = timeouts.AGENT_CALL
_SYNC = 15.0  # seconds that libvirt tries to reach an agent, before it sends a command
_BRIEF = 1  # seconds of questions whose answers come too late, or never get whole
_SLACK = 20.0  # seconds beside the deadline of a question: libvirt waits for what it searches, on a busy node
_DONE = 30.0  # seconds in which the agent connects again, or has given its last answer
_AGAIN = 60.0  # seconds in which an agent answers again after an answer that libvirt gives it up for
_PAUSE, _CALM = 0.2, 3.0  # seconds between two pings of a hostile agent, and two rounds of pings of others
_LOOK = 1.0  # seconds between two looks at the console
FILLING = "objects"
_FILLING = 60  # seconds of the answer that fills libvirtd's memory
_WORDS = 400  # of the console, at most
_UNFORESEEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class HostileAgent:
    """The throw-away guest. It must be present (`Throwaway.present`)."""

    def __init__(self, fleet: Fleet, stranger: Throwaway) -> None:
        self._fleet, self._stranger = fleet, stranger
        self._node, self._guest = stranger.node, stranger.guest
        self.token = f"token{secrets.token_hex(8)}"

    def start(self) -> None:
        """Start the guest.

        Raises:
            InstrumentError: its agent does not connect in time.
            ProvisioningError: it does not start.
        """
        self._stranger.start_program(f"{_PROGRAM.read_text()}\nserve({_LIFE})\n")
        self._node.hypervisor.wait_for_agent(self._guest.domain, ProgressDeadline(_BOOT))

    def play(self) -> Iterator[Answered]:
        """Ask for every hostile answer, and yield the outcome of each question.

        Raises:
            InstrumentError: the agent does not come back after an answer.
        """
        for name, question, deadline, right in self._questions():
            yield self._answered(name, question, deadline, right)
            if name in (*DOUBTFUL, *ENDLESS) and name != LAST:
                self._await_answer()

    def fill(self, octets: int) -> None:
        """Let the agent give an answer for which libvirtd needs memory; whether it comes does not matter.

        Args:
            octets: of memory, at least.

        Raises:
            InstrumentError: the agent has not given the answer in time.
        """
        path = f"{PREFIX}{FILLING}/{-(-octets // OBJECTS)}"
        self._answered(
            FILLING,
            partial(self._node.agent, self._guest.domain, "guest-exec", {"path": path}, _FILLING),
            _FILLING,
            None,
        )
        self._await_words([f"<{word} {FILLING}>" for word in ("heard", "done")])

    def require_heard(self) -> None:
        """Wait until the guest's console shows that it has heard every question and given every answer.

        Raises:
            InstrumentError: it does not in time.
        """
        self._await_words(
            [f"<{word} {name}>" for name, *_ in self._questions() for word in ("heard", "done")]
        )

    def _await_words(self, words: Sequence[str]) -> None:
        look = f"grep -aoE '<[a-z0-9 -]+>' {self._guest.console} | tail -n {_WORDS}"
        end = time.monotonic() + _DONE
        while missing := set(words) - set((text := self._stranger.machine.read(look)).splitlines()):
            if time.monotonic() > end:
                raise InstrumentError(
                    f"the hostile agent of {self._guest.domain} was not seen",
                    fact=f"its console does not show {min(missing)!r}, and ends with {text[-60:]!r}",
                    remedy="repeat the check",
                )
            time.sleep(_LOOK)

    def _await_answer(self) -> None:
        """Wait until the agent answers pings again, after an answer that libvirt may have given it up for.

        Raises:
            InstrumentError: it does not in time.
        """
        end = time.monotonic() + _AGAIN
        while True:
            self._node.hypervisor.wait_for_agent(self._guest.domain, ProgressDeadline(_DONE))
            try:
                self._ping()
            except InstrumentError:
                if time.monotonic() > end:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    def _questions(self) -> Iterator[tuple[str, Callable[[], object], float, object]]:
        """Yield name, question, deadline in seconds, and right answer (None if there is none).

        Those after which libvirt gives the agent up come last.
        """
        right = {"pid": TRUE}
        yield "right", partial(self._ask, "right", _PING), _PING, right
        yield "wide", partial(self._ask, "wide", _PING), _PING, None
        yield "late", partial(self._ask, "late", _BRIEF), _BRIEF, None
        yield "next", partial(self._ask, "next", _PING), _PING, right
        for name in ("error", "status", "endless"):
            yield name, partial(self._run, name), _SYNC, None
        for name in ("events", "words"):
            yield name, partial(self._run, name), _SYNC, ""
        yield "host-name", self._identity, _SYNC, None
        files = Files(self._node, self._guest)
        yield "file", partial(files.read, self._path("file")), _SYNC, None
        yield "silence", partial(self._ask, "silence", _BRIEF), _BRIEF, None
        yield "guest-sync", self._ping, _SYNC, {}
        for name in DOUBTFUL:
            yield name, partial(self._ask, name, _PING), _PING, None
        for name in ENDLESS:
            yield name, partial(self._ask, name, _BRIEF), _BRIEF, None

    def _path(self, name: str) -> str:
        return f"{PREFIX}{name}/{self.token}"

    def _ask(self, name: str, seconds: int) -> object:
        return self._node.agent(self._guest.domain, "guest-exec", {"path": self._path(name)}, seconds)

    def _ping(self) -> object:
        return self._node.agent(self._guest.domain, "guest-ping", {}, _PING)

    def _run(self, name: str) -> object:
        return run_in_guest(self._node, self._guest, [self._path(name)], b"", _BRIEF)

    def _identity(self) -> object:
        require_identity(partial(self._node.agent, self._guest.domain), self._guest)
        return "its host name"

    def _answered(
        self, name: str, question: Callable[[], object], deadline: float, right: object
    ) -> Answered:
        began, started = time.monotonic(), time.time()
        answer: object = None
        error: Exception | None = None
        try:
            answer = question()
        except (TestbedError, *_UNFORESEEN) as failure:
            error = failure
        seconds = time.monotonic() - began
        told = f"{type(error).__name__}: {error}" if error else str(answer)
        self._fleet.evidence.record(self._guest.domain, "hostile agent", name, told[:2000], started)
        return Answered(name, seconds, deadline + _SLACK, answer, error, right)


@contextmanager
def pinged(fleet: Fleet, guests: tuple[Guest, ...]) -> Iterator[Pings]:
    """Ping the agents of guests while the block runs, one after the other."""
    found, over = Pings(), threading.Event()

    def ping() -> None:
        while not over.wait(_CALM):
            for guest in guests:
                began = time.monotonic()
                try:
                    fleet.lab.nodes[guest.node].agent(guest.domain, "guest-ping", {}, _PING)
                except InstrumentError as error:
                    found.failed(guest.label, error.fact)
                else:
                    found.took(guest.label, time.monotonic() - began)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def silent(fleet: Fleet, guests: tuple[Guest, ...]) -> list[str]:
    """Return which guests' agents do not answer, although libvirt has had time to reach them again."""
    found, end = [], time.monotonic() + _AGAIN
    for guest in guests:
        while True:
            try:
                fleet.lab.nodes[guest.node].agent(guest.domain, "guest-ping", {}, _PING)
            except TestbedError as error:
                if time.monotonic() > end:
                    found.append(f"{guest.label} does not answer: {line(error.fact, 120)}")
                    break
                time.sleep(_LOOK)
            else:
                break
    return found
