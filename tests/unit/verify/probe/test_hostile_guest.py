"""The cost of a hostile guest or machine for a run: bounded seconds and octets."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.places.node import Node
from testbed.drivers.ssh import command_session as sessions
from testbed.drivers.ssh.command_session import Session, SessionStream, closing_after
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.reachability import endpoints
from testbed.model.resolve import resolve
from testbed.plan.libvirt_xml.machine import NAMESPACE, read_mark
from testbed.plan.resources import Key, Kind
from testbed.report import formats, screen
from testbed.report.result import CheckResult, Run, Verdict, to_json
from testbed.topology_file.loader import read
from testbed.untrusted.text import line
from testbed.verify.guest_agent import Files, run_in_guest
from testbed.verify.observation.arrivals import Observation
from testbed.verify.probe import budget, transport
from testbed.verify.probe.budget import Allowance
from testbed.verify.probe.client import CALL, Probe, ProbeClient, listed, require_sent, results_of
from testbed.verify.probe.tokens import Tokens
from testbed.verify.probe.transport import AgentTransport
from testbed.verify.witnesses.dhcp_answers import read_offer
from tests.hostile import OVERSIZE, WORDS, Clock, HostileAgent, bomb, file, message, nested, piece

LAB = resolve(read(Path(__file__).parents[4] / "topologies/one-node.yaml").spec)
GUEST = LAB.guests[0]
MEMORY = 120 * 2**20  # octets that reading one answer may take at most, whatever it is


@contextmanager
def bounded(memory: int = MEMORY, seconds: float = 10.0) -> Iterator[None]:
    """Fail if a block takes more time of a processor, or more memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < seconds
    assert peak < memory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in ("testbed.verify.guest_agent", "testbed.verify.probe.transport"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=found, sleep=found.sleep, time=found))
    return found


READS = {
    "one octet an answer, an answer a second": ({**file(b""), "guest-file-read": piece(b"x")}, 1.0),
    "one octet an answer, at once": ({**file(b""), "guest-file-read": piece(b"x")}, 0.001),
    "each answer just in time": ({**file(b""), "guest-file-read": piece(b"x" * 1000)}, 19.9),
    "no answer": (file(b""), 1e9),
    "no end": ({**file(b""), "guest-file-read": piece(b"x" * 2**19)}, 0.1),
    "too much at once": (file(b"x" * 2**24), 0.1),
    "a truth value as a handle": ({**file(b""), "guest-file-open": {"value": True}}, 0.1),
    "a huge handle": ({**file(b""), "guest-file-open": {"value": 2**70}}, 0.1),
    "a negative handle": ({**file(b""), "guest-file-open": {"value": -1}}, 0.1),
    "a fraction as a handle": ({**file(b""), "guest-file-open": {"value": 1000.0}}, 0.1),
}


@pytest.mark.parametrize("name", READS)
def test_a_file_is_read_within_a_minute_and_two_mebibytes(name: str, clock: Clock) -> None:
    """One octet with each answer held a check for hours."""
    answers, cost = READS[name]
    with bounded(), pytest.raises(InstrumentError):
        Files(HostileAgent(clock, answers, cost), GUEST, clock).read("/run/x")
    assert clock.now <= 60 + 2 * 20


@pytest.mark.parametrize(
    ("count", "cost"), [(1, 0.1), (True, 0.1), (1.0, 0.1), ("4", 0.1), (2**70, 0.1), (4, 19.9), (4, 1e9)]
)
def test_a_file_is_written_within_a_minute(count: object, cost: float, clock: Clock) -> None:
    agent = HostileAgent(
        clock, {"guest-file-open": {"value": 1000}, "guest-file-write": {"count": count}}, cost
    )
    with pytest.raises(InstrumentError):
        Files(agent, GUEST, clock).write("/run/x", b"four" if cost < 1 else b"x" * 2**20)
    assert clock.now <= 60 + 2 * 20


PROGRAMS = [
    {"guest-exec": {"pid": True}},
    {"guest-exec": {"pid": 2**70}},
    {"guest-exec": {"pid": -1}},
    {"guest-exec": {"pid": 7.0}},
    *(
        {"guest-exec": {"pid": 7}, "guest-exec-status": {"exited": True, "exitcode": code}}
        for code in (True, 256, -1, 2**70, 0.0, "0")
    ),
    {"guest-exec": {"pid": 7}, "guest-exec-status": {"exited": 1}},
    {"guest-exec": {"pid": 7}, "guest-exec-status": {"exited": False}},
]


@pytest.mark.parametrize("answers", PROGRAMS, ids=str)
def test_a_program_ends_in_time_or_is_no_observation(answers: dict[str, Any], clock: Clock) -> None:
    """A status of 256 would be a success to a shell."""
    with pytest.raises(InstrumentError):
        run_in_guest(HostileAgent(clock, answers), GUEST, ["/bin/true"], b"", 30)
    assert clock.now < 60


def _instrument(agent: HostileAgent, clock: Clock, name: str = "red/web") -> ProbeClient:
    fleet: Any = SimpleNamespace(
        evidence=SimpleNamespace(record=lambda *_: None), files_of=lambda _: Files(agent, GUEST, clock)
    )
    pipe = AgentTransport(fleet, GUEST)
    pipe.allowance = Allowance(name, clock)
    return ProbeClient(name, lambda *_: b'{"started": true}', pipe=pipe)


ANSWERS = {
    "many objects": bomb(1_300_000),
    "deep": message(nested(5_000_000)),
    "long": OVERSIZE,
    "no JSON": message(b"x"),
    "not a number": message(b'{"at": NaN}'),
    "infinite": message(b'{"at": 1e999}'),
    "digits": message(b'{"at": ' + b"9" * 100_000 + b"}"),
    "half a character": message(b'{"token": "\\ud800"}'),
    "no UTF-8": message(b'{"a": "\xff"}'),
    "a list": message(b"[]"),
    "another language": WORDS.encode(),
    "nothing": b"",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_an_object_of_bounded_size_or_none(name: str, clock: Clock) -> None:
    """A few kilobytes could become hundreds of megabytes of objects."""
    instrument = _instrument(HostileAgent(clock, file(ANSWERS[name])), clock)
    with bounded(), pytest.raises(InstrumentError) as caught:
        instrument.ask({"phase": "finish"})
    assert len(str(caught.value)) < 2000
    assert clock.now < 60


@pytest.mark.parametrize(("cost", "what"), [(1e9, "never"), (19.0, "just in time")])
def test_a_run_does_not_wait_for_a_guest_for_hours(cost: float, what: str, clock: Clock) -> None:
    """Late and missing answers are charged, however many observations there are."""
    missing = InstrumentError("-", fact="No such file or directory", remedy="-")

    def opened(arguments: dict[str, Any]) -> object:
        return (
            missing if arguments["mode"] == "r" else {"value": 1000}
        )  # the pipe is there, the answer never is

    instrument = _instrument(HostileAgent(clock, {**file(b""), "guest-file-open": opened}, cost), clock)
    for _ in range(1000):
        with pytest.raises(InstrumentError) as caught:
            instrument.ask({"phase": "finish"})
    assert "not asked any more" in caught.value.what
    assert clock.now < budget.SECONDS + CALL + 120


def test_a_run_does_not_take_in_more_than_its_share(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "OCTETS", 20_200)
    instrument = _instrument(
        HostileAgent(clock, file(message(json.dumps({"text": "x" * 1000}).encode()))), clock
    )
    for _ in range(20):
        assert len(instrument.ask({"phase": "finish"})["text"]) == 1000
    with pytest.raises(InstrumentError, match="not asked any more"):
        instrument.ask({"phase": "finish"})


def _waiting(clock: Clock, files: dict[str, tuple[float, bytes]]) -> tuple[AgentTransport, list[str]]:
    """Return the transport to a guest with files that each come after some seconds, and what is opened."""
    opened: list[str] = []

    def path(arguments: dict[str, Any]) -> object:
        opened.append(arguments["path"].rpartition("/")[2].partition(".")[0])
        since, _ = files.get(opened[-1], (0.0, b"")) if arguments["mode"] == "r" else (0.0, b"")
        missing = opened[-1] not in (*files, "in") or clock.now < since
        return InstrumentError("-", fact="No such file or directory", remedy="-") if missing else {"value": 7}

    answers = {
        **file(b""),
        "guest-file-open": path,
        "guest-file-read": lambda _: piece(files[opened[-1]][1], True),
    }
    fleet: Any = SimpleNamespace(
        evidence=SimpleNamespace(record=lambda *_: None),
        files_of=lambda _: Files(HostileAgent(clock, answers), GUEST, clock),
    )
    return AgentTransport(fleet, GUEST), opened


LOCKED = {
    "pid": (0.0, b"7"),
    "locks": (0.0, b"1: POSIX ADVISORY WRITE 7\n2: FLOCK ADVISORY WRITE 7 00:18:1 0 EOF"),
}


def test_a_probe_is_asked_for_its_lock_only_when_it_is_silent_for_long(clock: Clock) -> None:
    pipe, opened = _waiting(clock, {"answer": (5.0, b"x")})
    assert pipe.ask("n", b"-", transport.Wait(0, 300), nullcontext()) == b"x"
    assert "locks" not in opened
    pipe, opened = _waiting(clock, {**LOCKED, "answer": (clock.now + 100, b"x")})
    assert pipe.ask("n", b"-", transport.Wait(0, 300), nullcontext()) == b"x"
    assert 5 <= opened.count("locks") <= 10


@pytest.mark.parametrize(
    ("locks", "told", "seconds"),
    [
        (LOCKED["locks"][1], "takes too long", 300),
        (b"", "does not run", 10),
        (b"2: FLOCK ADVISORY WRITE 8 00:18:1 0 EOF", "does not run", 10),
        (b"2: POSIX ADVISORY WRITE 7 00:18:1 0 EOF", "does not run", 10),
    ],
)
def test_a_probe_that_has_ended_is_noticed_long_before_the_end(
    locks: bytes, told: str, seconds: int, clock: Clock
) -> None:
    pipe, _ = _waiting(clock, {**LOCKED, "locks": (0.0, locks)})
    with pytest.raises(InstrumentError, match=told):
        pipe.ask("n", b"-", transport.Wait(0, 300), nullcontext())
    assert seconds < clock.now < seconds + 5


def test_an_honest_guest_that_is_slow_is_asked_as_often_as_needed(clock: Clock) -> None:
    """Sending takes as long as there are probes, and others' turns are not charged."""
    agent = HostileAgent(clock, file(message(b"{}")), 3.0)
    instrument = _instrument(agent, clock)

    @contextmanager
    def turn() -> Iterator[None]:
        clock.now += 250
        yield

    for _ in range(500):
        assert instrument.ask({"phase": "send", "probes": [{}] * 40}, turn()) == {}


def test_a_late_answer_is_charged_beyond_what_was_expected() -> None:
    clock = Clock()
    found = Allowance("red/web", clock)
    for _ in range(int(budget.SECONDS / 90)):
        with found.question(10):
            clock.now += 100
    with pytest.raises(InstrumentError, match="not asked any more"), found.question(10):
        pass


@pytest.mark.parametrize("spent", ["seconds", "octets"])
def test_an_allowance_that_is_just_spent_is_spent(spent: str) -> None:
    clock = Clock()
    found = Allowance("red/web", clock)
    with found.question(10):
        clock.now += budget.SECONDS + 10 - 1
        found.received(budget.OCTETS - 1)
    with found.question(10):
        clock.now += 10 + (spent == "seconds")
        found.received(spent == "octets")
    with pytest.raises(InstrumentError, match="not asked any more"), found.question(10):
        pass


def test_the_page_states_the_budget_of_a_run() -> None:
    page = (Path(__file__).parents[4] / "docs/reference/untrusted.md").read_text()
    assert f"one guest or machine, in one run | {budget.OCTETS // 2**20} MiB |" in page
    assert f"one guest or machine, in one run | {budget.SECONDS:.0f} s;" in page


def test_lists_have_an_end() -> None:
    assert listed({"records": [{}, 1, None, {"a": 1}]}, "records") == [{}, {"a": 1}]
    assert len(listed({"records": [{}] * 10_000}, "records")) == 10_000
    with pytest.raises(InstrumentError, match="too many records"):
        listed({"records": [{}] * 10_001}, "records")


@pytest.mark.parametrize(
    "result", [{"id": "b", "sent": True}, {"id": ["a"], "sent": True}, {"id": "a", "sent": 1}, {"sent": True}]
)
def test_the_result_of_another_probe_is_none_of_ours(result: dict[str, object]) -> None:
    own = Probe("a", endpoints(LAB)[0], {})
    with pytest.raises(InstrumentError, match="could not send a"):
        require_sent([own], results_of({own.sender.guest: {"results": [result]}}))


@pytest.mark.parametrize("value", ["nan", [1], True, float("nan"), -1, 2**70, None])
@pytest.mark.parametrize("key", ["at", "until", "times"])
def test_what_a_recorder_tells_is_a_number_or_no_observation(key: str, value: object) -> None:
    tokens = Tokens("tb-", b"key")
    record = {"token": tokens.of("x"), "at": 1.0, "until": 2.0, "times": 3, key: value}
    with pytest.raises(InstrumentError):
        Observation(tokens, {"red/web": [record]}, {}).windows("x")


def test_a_frame_is_no_longer_than_one() -> None:
    for head in (
        b"\x86\xdd" + bytes([0x60]) + bytes(5) + b"\x11" + bytes(33),
        b"\x08\x00\x45" + bytes(8) + b"\x11" + bytes(10),
    ):
        ports = (b"\x02\x23\x02\x22" if head[0] == 0x86 else b"\x00\x43\x00\x44") + bytes(4)
        with bounded(seconds=2):
            read_offer(bytes(12) + head + ports + bytes(4_000_000))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        '{"return": ' + "[" * 99 + "]" * 99 + "}",
        '{"return": [' + "{}," * 1_300_000 + "{}]}",
        '{"return": {"a": 1e999}}',
    ],
)
def test_an_agents_answer_is_read_within_bounds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", lambda *_: text)
    hypervisor: Any = Hypervisor.__new__(Hypervisor)
    hypervisor._asked, hypervisor._cut = {"red.web": None}, lambda: None
    monkeypatch.setattr(hypervisor, "_find", lambda _: None)
    with bounded(), pytest.raises(InstrumentError, match="answers garbage"):
        hypervisor.agent("red.web", "guest-info", {}, 5)


def _undecodable(*_: object) -> str:
    return b"\xff".decode()


def _undecodable_message(*_: object) -> str:
    """Fail as libvirt-python does when its handler of errors meets a message that is not UTF-8."""
    try:
        return b"\xff".decode()
    except UnicodeDecodeError as error:
        raise SystemError("returned a result with an exception set") from error


@pytest.mark.parametrize("answer", [_undecodable, _undecodable_message])
def test_an_agents_text_that_is_not_utf8_is_an_error_of_its_guest(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", answer)
    hypervisor: Any = Hypervisor.__new__(Hypervisor)
    hypervisor._asked, hypervisor._cut = {"red.web": object()}, lambda: None
    with pytest.raises(InstrumentError, match=r"red\.web") as failure:
        hypervisor.agent("red.web", "guest-info", {}, 5)
    assert failure.value.fact == "libvirt passes on text that is not UTF-8"


def test_another_error_of_the_library_is_no_text_of_a_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise SystemError("bad call")

    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", fail)
    hypervisor: Any = Hypervisor.__new__(Hypervisor)
    hypervisor._asked, hypervisor._cut = {"red.web": object()}, lambda: None
    with pytest.raises(SystemError, match="bad call"):
        hypervisor.agent("red.web", "guest-info", {}, 5)


def test_a_libvirt_that_lives_and_does_not_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr("testbed.drivers.hypervisor.connection._LONGEST", -4.8)
    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", lambda *_: str(ended.wait(30)))
    hypervisor: Any = Hypervisor.__new__(Hypervisor)
    hypervisor._asked, hypervisor._cut = {"red.web": object()}, ended.set
    began = time.monotonic()
    with pytest.raises(InstrumentError):
        hypervisor.agent("red.web", "guest-info", {}, 5)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("mark", ["x", "[1]", "[" * 9999, '{"a": NaN}'])
def test_a_mark_that_a_node_has_changed_is_no_mark(mark: str) -> None:
    xml = (
        f'<domain><metadata><t:lab xmlns:t="{NAMESPACE}" name="a" '
        f'resource="b">{mark}</t:lab></metadata></domain>'
    )
    assert read_mark(xml) == ("a", "b", {})


def test_a_file_of_a_pool_may_be_called_anything() -> None:
    """Its name was split at spaces and lines, which ended in an error of ours."""
    node: Any = Node.__new__(Node)
    node.name = "node-a"
    found = node._volumes("600 7 1 5 red/data.raw\x00644 0 1 2 red/a b\n::error::c\x00")
    assert found[Key("node-a", Kind.VOLUME, "red/data.raw")] == {
        "mode": "600",
        "owner": 7,
        "links": 1,
        "size": 5,
    }
    assert found[Key("node-a", Kind.VOLUME, "red/a b\n::error::c")]["owner"] == 0
    for wrong in ("x", "600 7 1 red/x", "find: denied", "600 -1 1 5 red/x", "6" * 9):
        with pytest.raises(ProvisioningError, match="cannot be observed"):
            node._volumes(f"{wrong}\x00")


def test_a_machine_that_reads_nothing_does_not_hold_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """paramiko waits for ever for a peer whose window is full."""
    monkeypatch.setattr(sessions, "_GRACE", 0.2)
    closed, silent = threading.Event(), threading.Event()

    def write(_: bytes) -> None:
        closed.wait(30)
        raise OSError("closed")

    class Silent(BytesIO):
        def readline(self, *_: object) -> bytes:  # type: ignore[override]
            silent.wait(30)
            return b""

    session = Session(write, Silent(), closed.set)
    began = time.monotonic()
    with pytest.raises(OSError, match="closed"):
        session.run("true", stdin=b"", timeout=0.1)
    assert time.monotonic() - began < 10
    silent.set()


def test_a_machine_that_floods_a_connection_ends_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_UNREAD", 1000)
    stream = SessionStream(lambda _: None)
    stream.arrived(b"x" * 900)
    assert stream.recv(9) == b"x" * 900
    stream.arrived(b"x" * 900)
    with pytest.raises(EOFError, match="floods"):
        stream.arrived(b"x" * 200)


def test_closing_is_left_out_where_all_is_in_time() -> None:
    closed: list[int] = []
    with closing_after(0.3, lambda: closed.append(1)):
        pass
    time.sleep(0.5)
    assert closed == []


def test_what_a_guest_says_in_an_error_is_shown_and_obeyed_by_nobody(clock: Clock) -> None:
    """From the agent to every form of the report."""
    instrument = _instrument(
        HostileAgent(clock, {"guest-file-open": InstrumentError("-", fact=WORDS, remedy="-")}), clock
    )
    with pytest.raises(InstrumentError) as caught:
        instrument.ask({"phase": "finish"})
    reason = f"{caught.value.what}: {caught.value.fact}"
    check = CheckResult("NET-01", "fleet", "it holds", "high", Verdict.INCONCLUSIVE, reason, False, 1.0, ())
    data_ = to_json(Run("lab", "ab", {}, "2026-01-01", 1.0, (check,), (), (reason,)))
    for form in (screen.text, formats.markdown, formats.junit):
        shown = form(data_)
        assert "said by a guest" in shown
        assert not any(
            item.lstrip().startswith("::") or "##vso[" in item or not item.isprintable()
            for item in shown.split("\n")
        )
    assert line(caught.value).isprintable()


def test_evidence_shows_an_answer_that_is_none() -> None:
    assert isinstance(transport.shown(b"\xff"), str)
    assert transport.shown(message(b'{"a": 1}')) == '{"a": 1}'
