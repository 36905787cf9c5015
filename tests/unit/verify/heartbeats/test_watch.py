"""Heartbeats beside a run: the command that reads a node, the thread that sends it, the results (DOS-01)."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError
from testbed.model.reachability import ReachMatrix
from testbed.report.result import CheckResult, Verdict
from testbed.verify.evidence import Evidence
from testbed.verify.fleet import Fleet
from testbed.verify.heartbeats import watch
from testbed.verify.heartbeats.beats import lives
from testbed.verify.heartbeats.watch import HeartWatch, reading_command
from tests.shapes import lab_of

LAB = lab_of("one-node")
WEB = LAB.guests[0]


def test_one_shell_reads_worker_processors_and_interfaces(tmp_path: Path) -> None:
    """A thread of this process stands for one that runs a guest's processor."""
    over, named = threading.Event(), threading.Event()

    def run() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("CPU 0/KVM")
        named.set()
        over.wait(30)

    thread = threading.Thread(target=run)
    thread.start()
    assert named.wait(30)
    (tmp_path / f"{WEB.domain}.pid").write_text(f"{os.getpid()}")
    command = reading_command(LAB.guests).replace("/run/libvirt/qemu", str(tmp_path))
    try:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    finally:
        over.set()
        thread.join()
    up, found = lives(done.stdout)
    assert up > 0
    own = found[WEB.domain]
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    assert own.worker == (os.getpid(), start)
    assert own.ran > 0
    assert {life.worker for domain, life in found.items() if domain != WEB.domain} == {(0, 0)}
    assert done.stderr == ""


class Node:
    """A node whose guests run on and answer; it counts what it was asked."""

    def __init__(self) -> None:
        self.beats, self.alive = 0, True
        self.name, self.access = "node", SimpleNamespace(address="192.0.2.1")
        self.silent = threading.Event()
        self.hypervisor = SimpleNamespace(count=lambda: 3)

    def sudo(self, _: str, *, timeout: float) -> Any:
        assert timeout == 60
        if self.silent.is_set():
            raise InstrumentError("it is silent", fact="-", remedy="-")
        self.beats += 1
        work = self.beats if self.alive else 1
        rows = [f"{guest.domain} 5 100 {work}" for guest in LAB.guests]
        return SimpleNamespace(text=f"up {watch.time.monotonic():.2f}\n" + "\n".join(rows))


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def fleet(tmp_path: Path, node: Node, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(watch, "_CALM", 0.001)
    monkeypatch.setattr(watch, "_PERIOD", 0.01)
    monkeypatch.setattr(watch, "_PATIENCE", 2.0)
    monkeypatch.setattr(watch.look, "faults", lambda *_: [])
    lab: Any = SimpleNamespace(topology=LAB, nodes={"node": node}, host=lambda _: node)
    return Fleet(lab, Evidence(tmp_path / "run" / "evidence"), {}, ReachMatrix.of(LAB))


def beaten(fleet: Fleet, node: Node, *, beats: int = 8) -> HeartWatch:
    found = HeartWatch(fleet)
    found.begin()
    found.attacked()
    end, first = threading.Event(), node.beats
    for _ in range(400):
        if node.beats >= first + beats or end.wait(0.01):
            break
    found.stop()
    found.judge(last_look=True)
    return found


def test_a_run_in_which_all_is_alive_is_a_pass_with_evidence(
    fleet: Fleet, node: Node, tmp_path: Path
) -> None:
    found = beaten(fleet, node)
    (row,) = found.results
    assert (row.id, row.case, row.verdict) == ("DOS-01", "node", Verdict.PASS)
    assert "not counted: nothing" in row.reason
    (name,) = row.evidence
    assert len((tmp_path / "run" / name).read_text().splitlines()) == node.beats
    assert found.told == [f"heartbeats of node: pass: {row.reason}"]


def test_guests_that_stop_during_the_checks_are_a_fail(fleet: Fleet, node: Node) -> None:
    found = HeartWatch(fleet)
    found.begin()
    found.attacked()
    node.alive = False
    first = node.beats
    while node.beats < first + 12:
        threading.Event().wait(0.01)
    found.stop()
    found.judge(last_look=True)
    (row,) = found.results
    assert row.verdict is Verdict.FAIL
    assert "red/web: " in row.reason


def test_no_beat_is_taken_while_an_interruption_lasts(fleet: Fleet, node: Node) -> None:
    found = HeartWatch(fleet)
    found.begin()
    found.attacked()
    with fleet.interruptions.during("a reboot", "node"):
        threading.Event().wait(0.1)
        count = node.beats
        threading.Event().wait(0.1)
        assert node.beats == count
    found.stop()
    found.judge(last_look=True)
    assert node.beats > count


def test_a_node_that_is_silent_from_the_beginning_is_no_pass(
    fleet: Fleet, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_PATIENCE", 0.1)
    node.silent.set()
    (row,) = beaten(fleet, node, beats=0).results
    assert row.verdict is Verdict.INCONCLUSIVE


def test_libvirt_that_does_not_answer_is_missed(
    fleet: Fleet, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_API", 0.01)
    held = threading.Event()
    found = HeartWatch(fleet)
    found.begin()
    found.attacked()
    node.hypervisor.count = lambda: held.wait(20) and 3
    first = node.beats
    while node.beats < first + 12:
        threading.Event().wait(0.01)
    found.stop()
    found.judge(last_look=True)
    held.set()
    (row,) = found.results
    assert row.verdict is Verdict.FAIL
    assert "libvirt: " in row.reason


def test_a_run_of_some_controls_takes_no_beats(fleet: Fleet, node: Node) -> None:
    found = HeartWatch(fleet, ("NET-01",))
    found.begin()
    found.attacked()
    found.stop()
    found.judge(last_look=True)
    assert (found.results, node.beats) == ([], 0)


def check_row(verdict: Verdict, case: str = "node") -> CheckResult:
    return CheckResult(
        id="DOS-01",
        case=case,
        objective="alive",
        severity="high",
        verdict=verdict,
        reason="",
        simulated=False,
        duration_s=1.0,
        evidence=(),
    )


def test_beats_that_show_nothing_are_told_with_the_check_of_the_node(fleet: Fleet, node: Node) -> None:
    found = beaten(fleet, node)
    own, other = found.among([check_row(Verdict.PASS), check_row(Verdict.PASS, "node-b")])
    assert (own.verdict, "not counted: nothing" in own.reason) == (Verdict.PASS, True)
    assert other.reason == ""
    failed = check_row(Verdict.FAIL)
    assert found.among([failed]) == [failed]


@pytest.mark.parametrize(
    ("last", "verdict", "fact"),
    [
        (["red/web is silent"], Verdict.FAIL, "at the end: red/web is silent; 0 of"),
        (UnseenError("a write is slow"), Verdict.INCONCLUSIVE, "at the end: a write is slow; 0 of"),
        (InstrumentError("no agent", fact="-", remedy="-"), Verdict.INCONCLUSIVE, "at the end: no agent"),
    ],
)
def test_the_last_look_is_a_result_of_its_own(
    last: Any, verdict: Verdict, fact: str, fleet: Fleet, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object) -> list[str]:
        if isinstance(last, Exception):
            raise last
        return list(last)

    monkeypatch.setattr(watch.look, "faults", look)
    passed = check_row(Verdict.PASS)
    own, more = beaten(fleet, node).among([passed])
    assert own == passed
    assert more.verdict is verdict
    assert more.reason.startswith(fact)
