"""Client of the probe's program: starts it in guests and on machines, and reads its answers.

Answers from a guest are hostile: they are JSON of bounded size, or nothing was observed.
"""

from __future__ import annotations

import json
import secrets
import shlex
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from testbed import timeouts
from testbed.errors import InstrumentError
from testbed.model.reachability import Endpoint
from testbed.model.topology import Guest
from testbed.payload.probe import wire
from testbed.untrusted import bounded_json
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.probe.frames import Frame
from testbed.verify.probe.requests import Request, Start, Stop
from testbed.verify.probe.tokens import Tokens
from testbed.verify.probe.transport import (
    FOLDER,
    AgentTransport,
    PollLock,
    Run,
    ShellTransport,
    Transport,
    Wait,
    shown,
)

WINDOW = 1.0  # seconds after which the last frame of a probe counts as stopped
LIFE = timeouts.PROBE_LIFE
CALL = timeouts.PROBE_CALL
BUDGET = CALL - 60  # seconds of them for sending
_PROMPT = timeouts.PROBE_ANSWER
_GIVE_UP = timeouts.PROBE_END
_PROGRAM = Path(__file__).parents[2] / "payload/probe"
_FILES = (
    "wire",
    "interfaces",
    "frame_parser",
    "sniffer",
    "recorder",
    "tap_recorder",
    "service_client",
    "sender",
    "scanner",
    "main",
)
# Runs the program that comes compressed on standard input.
_UNPACK = "import sys, zlib; exec(zlib.decompress(sys.stdin.buffer.read()))"
_LOADER = """import json, sys, types
for name, text in [("testbed", ""), ("testbed.payload", ""), ("testbed.payload.probe", ""), *json.loads(%r)]:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
from testbed.payload.probe.main import main"""
_RECORDS = 10_000  # in one list of an answer; the probe's own bounds are lower
_SOUND = {"alive": True, "overflowed": False, "dropped": 0}

_ANY_TIME: PollLock = nullcontext()

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Probe:
    """One frame, or one use of a service.

    Args:
        mark: identifies it among all probes of the run; lower-case letters and digits.
        fields: parameters for `testbed.payload.probe.main`, besides the sender.
        frame: the frame; None for the use of a service.
    """

    mark: str
    sender: Endpoint
    fields: Mapping[str, object]
    frame: Frame | None = None


class ProbeClient:
    """The probe's program at one place, started by the first request and reached by its pipe.

    Args:
        run: runs a program there with input, for at most `timeout` seconds, and returns its output; raises
            InstrumentError.
        python: interpreter there.
        pipe: the transport to the running program; by default it runs programs as well.
    """

    def __init__(
        self, name: str, run: Run, python: str = "/usr/bin/python3", pipe: Transport | None = None
    ) -> None:
        self.name = name
        self._run = run
        self._python = python
        self._pipe = pipe or ShellTransport(name, run)
        self._started = False

    def listen(self, request: Request, lock: PollLock = _ANY_TIME) -> dict[str, Any]:
        """Send the first request of an observation; restart the program if it has ended.

        Raises:
            InstrumentError: it does not start.
        """
        if self._started:
            with suppress(InstrumentError):
                return self.ask(request, lock)
            self._started = False
        return self.ask(request, lock)

    def ask(self, request: Request, lock: PollLock = _ANY_TIME) -> dict[str, Any]:
        """Return the answer to one request; it is untrusted.

        Args:
            lock: held while the answer is polled, where polling costs time of the place.

        Raises:
            InstrumentError: there is none within `CALL`, or it is invalid.
        """
        self.start()
        name = secrets.token_hex(8)
        line = wire.pack({**request, "answer": name}) + b"\n"
        answer = self._pipe.ask(name, line, Wait(_expected(request), CALL), lock)
        return self._read(answer.strip(), wire.inflate)

    def start(self) -> None:
        """Start the program, unless it has been started.

        Raises:
            InstrumentError: it does not start.
        """
        if self._started:
            return
        start = Start(phase="start", folder=FOLDER, patience=LIFE)
        with self._pipe.allowance.question(_PROMPT):
            text = self._run([self._python, "-I", "-S", "-c", _UNPACK], compose(start), CALL)
        answer = self._read(text, bytes)
        if answer.get("started") is not True:
            raise inconclusive(f"the probe in {self.name} does not start", str(answer)[:200])
        self._started = True

    def end(self) -> None:
        """End the program; one that cannot be reached ends by itself."""
        if self._started:
            self._started = False
            with suppress(InstrumentError):
                self._pipe.tell(wire.pack(Stop(phase="stop")) + b"\n", _GIVE_UP)

    def _read(self, text: bytes, inflate: Callable[[bytes], bytes]) -> dict[str, Any]:
        try:
            plain = inflate(text)
            self._pipe.allowance.received(len(plain))
            answer = bounded_json.read(plain)
        except ValueError as error:
            raise inconclusive(f"the probe in {self.name} answers garbage", repr(text[:120])) from error
        if not isinstance(answer, dict):
            raise inconclusive(f"the probe in {self.name} answers garbage", type(answer).__name__)
        return answer


def _expected(request: Mapping[str, object]) -> float:
    """Return the seconds that an answer may take without charge.

    They are those that the request names, and a second for each probe.
    """
    named = (request.get(name) for name in ("patience", "duration", "window"))
    probes = request.get("probes")
    count = len(probes) if isinstance(probes, list) else 0
    return _PROMPT + count + sum(value for value in named if isinstance(value, int | float))


def compose(request: Mapping[str, object]) -> bytes:
    """Return the compressed program that starts the probe: files as modules, and one request."""
    sources = [[f"testbed.payload.probe.{name}", (_PROGRAM / f"{name}.py").read_text()] for name in _FILES]
    program = (
        f"{_LOADER % json.dumps(sources)}\nraise SystemExit(main(json.loads({json.dumps(request)!r})))\n"
    )
    return zlib.compress(program.encode())


def in_guest(fleet: Fleet, guest: Guest) -> ProbeClient:
    """Return the probe client of a guest."""

    def run(argv: list[str], stdin: bytes, timeout: float) -> bytes:
        return fleet.in_guest(guest, argv, stdin, timeout=timeout)

    return _kept(fleet, guest.label, run, AgentTransport(fleet, guest))


def on_machine(fleet: Fleet, machine: MachineView) -> ProbeClient:
    """Return the probe client of a machine."""

    def run(argv: list[str], stdin: bytes, timeout: float) -> bytes:
        return machine.read(shlex.join(argv), stdin=stdin, timeout=timeout, shown=shown).encode()

    return _kept(fleet, machine.name, run)


def _kept(fleet: Fleet, name: str, run: Run, pipe: Transport | None = None) -> ProbeClient:
    found: ProbeClient = fleet.instruments.setdefault(name, ProbeClient(name, run, pipe=pipe))
    return found


def everywhere(
    fleet: Fleet,
    guests: Sequence[Guest],
    ask: Callable[[ProbeClient, Request, PollLock], dict[str, Any]],
    requests: Mapping[str, Request],
) -> dict[str, dict[str, Any]]:
    """Send a request to the probe in each guest, in parallel.

    Only one guest of each node is polled for its answer at a time.
    """
    locks = {guest.node: Lock() for guest in guests}
    with ThreadPoolExecutor(max_workers=32) as pool:
        answers = pool.map(
            lambda guest: ask(in_guest(fleet, guest), requests[guest.label], locks[guest.node]), guests
        )
        return {guest.label: answer for guest, answer in zip(guests, answers, strict=True)}


@contextmanager
def one_observation(fleet: Fleet) -> Iterator[None]:
    """End every probe program if an observation fails, so that none goes on recording."""
    try:
        yield
    except BaseException:
        end_all(fleet)
        raise


def end_all(fleet: Fleet) -> None:
    """End every probe program of a fleet."""
    if fleet.instruments:
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(ProbeClient.end, fleet.instruments.values()))


def start_all(fleet: Fleet) -> None:
    """Start the probe in every guest and on their nodes before it is needed.

    A probe that does not start raises at its first request.
    """
    nodes = {guest.node for guest in fleet.topology.guests}
    found = [
        *(in_guest(fleet, guest) for guest in fleet.topology.guests),
        *(on_machine(fleet, fleet.machines[name]) for name in nodes),
    ]

    def start(instrument: ProbeClient) -> None:
        with suppress(InstrumentError):
            instrument.start()

    with ThreadPoolExecutor(max_workers=32) as pool:
        list(pool.map(start, found))


def listed(answer: Mapping[str, Any], key: str) -> list[Record]:
    """Return the dictionaries of a list in an untrusted answer; other items are dropped.

    Raises:
        InstrumentError: it is longer than any list of ours.
    """
    found = answer.get(key)
    if isinstance(found, list) and len(found) > _RECORDS:
        raise inconclusive(f"an answer has too many {key}", f"{len(found)} of them")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def results_of(sent: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Record]]:
    """Return the result of each probe, by guest and mark."""
    return {
        label: {str(item.get("id")): item for item in listed(answer, "results")}
        for label, answer in sent.items()
    }


def lines(probes: Sequence[Probe], tokens: Tokens) -> list[dict[str, object]]:
    """Return probes in the format of the guest's program."""
    return [_line(item, tokens.of(item.mark)) for item in probes]


def _line(probe: Probe, token: str) -> dict[str, object]:
    line: dict[str, object] = {"id": probe.mark, "mac": probe.sender.mac, **probe.fields}
    if probe.frame is not None:
        return {**line, "kind": "frame", "frame": probe.frame(token.encode()).hex()}
    return {"address": str(probe.sender.address), **line, "token": token}


def inconclusive(what: str, fact: str) -> InstrumentError:
    """Return the error of an observation that does not count."""
    return InstrumentError(what, fact=fact, remedy="run `testbed status`, then repeat the check")


def require_receiver(name: str, answer: Mapping[str, Any], **more: object) -> None:
    """Require that a recorder ran for its whole window and lost nothing.

    Args:
        more: further facts that its answer must contain.

    Raises:
        InstrumentError: it cannot vouch for the whole window.
    """
    wanted = {**_SOUND, **more}
    facts = {fact: answer.get(fact) for fact in wanted}
    if facts != wanted:
        raise inconclusive(f"the recorder in {name} cannot vouch for the whole window", str(facts))


def require_sent(probes: Sequence[Probe], results: Mapping[str, Mapping[str, Record]]) -> None:
    """Require that every probe left its sender.

    Raises:
        InstrumentError: one did not.
    """
    for probe in probes:
        result = results[probe.sender.guest].get(probe.mark, {})
        if result.get("sent") is not True:
            raise inconclusive(
                f"{probe.sender.guest} could not send {probe.mark}",
                str(result.get("error", "no answer"))[:400],
            )


def wait_out() -> None:
    """Wait until no sent frame can still be on its way."""
    time.sleep(WINDOW)
