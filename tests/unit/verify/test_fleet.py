"""Programs in guests, as checks start them: output, evidence of it, and failures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.model.reachability import ReachMatrix
from testbed.verify import fleet as module
from testbed.verify.evidence import Evidence
from testbed.verify.fleet import Fleet
from testbed.verify.guest_agent import Output
from tests.hostile import Clock, HostileAgent, file
from tests.shapes import lab_of

LAB = lab_of("two-tenants")
GUEST = LAB.guests[0]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    nodes = {node.name: HostileAgent(Clock(), file(node.name.encode())) for node in LAB.nodes}
    lab: Any = SimpleNamespace(topology=LAB, nodes=nodes)
    return Fleet(lab, Evidence(tmp_path / "run" / "evidence"), {}, ReachMatrix.of(LAB))


def _runs(monkeypatch: pytest.MonkeyPatch, result: Output | InstrumentError) -> None:
    def run(*_: object) -> Output:
        if isinstance(result, InstrumentError):
            raise result
        return result

    monkeypatch.setattr(module, "run_in_guest", run)


def test_a_check_gets_all_output_and_the_evidence_its_beginning(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runs(monkeypatch, Output(0, b"x" * 30_000, b""))
    assert fleet.in_guest(GUEST, ["/bin/cat"], b"four") == b"x" * 30_000
    (entry,) = fleet.evidence.entries
    assert entry["answer"] == {"status": 0, "stdout": "x" * 20_000}
    assert (entry["host"], entry["request"]) == (GUEST.label, "/bin/cat (4 bytes of input)")


def test_a_program_that_fails_or_does_not_end_is_no_observation(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both leave evidence."""
    _runs(monkeypatch, Output(1, b"half", b"no such file"))
    with pytest.raises(InstrumentError, match=f"a probe in {GUEST.label} failed") as caught:
        fleet.in_guest(GUEST, ["/bin/cat"])
    assert "no such file" in caught.value.fact
    _runs(monkeypatch, InstrumentError("it is silent", fact="nothing came", remedy="-"))
    with pytest.raises(InstrumentError, match="it is silent"):
        fleet.in_guest(GUEST, ["/bin/cat"])
    answers = [entry["answer"] for entry in fleet.evidence.entries]
    assert answers == [{"status": 1, "stdout": "half"}, "did not complete: nothing came"]


def test_files_of_a_guest_are_read_through_its_node(fleet: Fleet) -> None:
    for guest in LAB.guests:
        assert fleet.files_of(guest).read("/run/x") == guest.node.encode()


def test_evidence_names_its_run(fleet: Fleet) -> None:
    assert fleet.evidence.run == "run"
