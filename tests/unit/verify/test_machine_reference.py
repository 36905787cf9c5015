"""Findings of whole machines before and after the checks, as rows of a run."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_machine_integrity
from testbed.drivers.snapshots import golden_inventory
from testbed.errors import InstrumentError
from testbed.inventory.records import Inventory
from testbed.inventory.reference.derive import derived
from testbed.inventory.reference.judge import AWAKE, Scope
from testbed.model.resolve import resolve
from testbed.plan.host_config.identity import MachineKeys, identity_files, pack
from testbed.report.result import Verdict
from testbed.topology_file.loader import read
from testbed.verify import machine_reference
from testbed.verify.evidence import Evidence
from testbed.verify.machine_reference import BEGINNING, END, FILES, SURFACE_COLLECTORS, ReferenceWatch

TOPOLOGY = resolve(read(Path(__file__).parents[3] / "topologies/two-tenants.yaml").spec)
KEYS = MachineKeys(b"key", b"certificate", "authority", b"tls key", b"tls", b"ca", b"administrators")
FILE = {"type": "file", "mode": "0644", "owner": "0:0", "newer": True, "size": 37, "names": 1}
PROGRAM = ("file", "/usr/local/bin/undeclared")
ACCOUNT = ("account", "undeclared")


class Lab:
    """Machines that started from saved memory, and what is on each beyond their reference."""

    def __init__(self, folder: Path) -> None:
        self.topology = TOPOLOGY
        self.more: dict[str, dict[tuple[str, str], Any]] = {}
        self.requests: list[dict[str, object]] = []
        self.folder = folder
        self.workspace = SimpleNamespace(machine=lambda name: folder / "m" / name, folder=folder, lab="lab")
        for machine in TOPOLOGY.machines:
            own = folder / "m" / machine.name
            own.mkdir(parents=True)
            (own / "identity.tar").write_bytes(pack(identity_files(TOPOLOGY, machine, KEYS)))
            disk(own / "vda.qcow2", folder / "golden" / "vda.qcow2")

    def host(self, name: str) -> Any:
        return SimpleNamespace(name=name)


class Late(dict[str, Any]):
    """Gives one answer after another for any machine."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers

    def get(self, name: str, default: Any = None) -> Any:
        return self._answers.pop(0)


def disk(file: Path, base: Path) -> None:
    """Write the head of a qcow2 file that is based on another."""
    name = str(base).encode()
    file.write_bytes(b"QFI\xfb" + struct.pack(">IQI", 3, 104, len(name)) + bytes(84) + name)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(tmp_path)
    saved = SimpleNamespace(
        key="k",
        folder=tmp_path / "golden",
        made={"inventory": golden_inventory.program_digest()},
        verify_one=lambda name: None,
    )
    monkeypatch.setattr(machine_reference, "started_from", lambda overlay: saved)
    monkeypatch.setattr(golden_inventory, "load", lambda folder: Inventory({AWAKE: FILE}))

    def read_machine(host: Any, request: dict[str, object]) -> Inventory:
        lab.requests.append(request)
        machine = next(item for item in TOPOLOGY.machines if item.name == host.name)
        origin = machine_reference.Origin(
            TOPOLOGY, machine, pack(identity_files(TOPOLOGY, machine, KEYS)), str(request["key"])
        )
        found = lab.more.get(host.name, {})
        if "fails" in found:
            raise InstrumentError("it cannot be read", fact="it hangs", remedy="none")
        return Inventory({**derived(origin, {}, {}), AWAKE: FILE, **found})

    monkeypatch.setattr(machine_reference, "read_machine", read_machine)
    return lab


class Fleet:
    """As much of a fleet as a watch needs."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.topology, self.evidence = lab, lab.topology, Evidence(folder)
        self.shared: dict[str, Any] = {}
        self.focus = ""

    def observe_once(self, name: str, observe: Callable[[], Any]) -> Any:
        if name not in self.shared:
            self.shared[name] = observe()
        return self.shared[name]

    def observed(self, name: str) -> Any | None:
        return self.shared.get(name)

    def new_phase(self, focus: str = "") -> None:
        self.shared.clear()
        self.focus = focus


@pytest.fixture
def fleet(lab: Lab, tmp_path: Path) -> Any:
    return Fleet(lab, tmp_path / "run" / "evidence")


def _rows(watch: ReferenceWatch) -> list[tuple[str, str, Verdict]]:
    return [(row.id, row.case, row.verdict) for row in watch.results]


def _looks(fleet: Any, watch: ReferenceWatch) -> None:
    watch.look(BEGINNING)
    fleet.new_phase()
    watch.look(END)


def test_machines_as_they_should_be_give_no_row(fleet: Any) -> None:
    watch = ReferenceWatch(fleet, whole=True)
    _looks(fleet, watch)
    assert watch.results == []


def test_a_finding_fails_exactly_the_control_that_it_endangers(lab: Lab, fleet: Any) -> None:
    lab.more = {"node-a": {PROGRAM: FILE}, "controller": {ACCOUNT: ["0"]}}
    watch = ReferenceWatch(fleet, whole=True)
    _looks(fleet, watch)
    assert _rows(watch) == [
        ("ACC-02", "controller", Verdict.FAIL),
        ("VMM-01", "node-a", Verdict.FAIL),
    ]
    assert [row.severity for row in watch.results] == ["critical", "critical"]
    assert "at the beginning and at the end" in watch.results[0].reason
    assert "account undeclared" in watch.results[0].reason.splitlines()[0]


def test_what_comes_during_the_run_is_found_at_its_end(lab: Lab, fleet: Any) -> None:
    watch = ReferenceWatch(fleet, whole=True)
    watch.look(BEGINNING)
    lab.more = {"node-b": {ACCOUNT: ["0"]}}
    fleet.new_phase()
    watch.look(END)
    (row,) = watch.results
    assert (row.id, row.case) == ("ACC-02", "node-b")
    assert row.reason.endswith("(at the end)")


def test_a_machine_that_cannot_be_read_makes_vmm_01_inconclusive(lab: Lab, fleet: Any) -> None:
    lab.more = {"node-a": {"fails": True}, "node-b": {("unread", "account "): "it hangs"}}  # type: ignore[dict-item]
    watch = ReferenceWatch(fleet, whole=True)
    watch.look(BEGINNING)
    assert _rows(watch) == [
        ("VMM-01", "node-a", Verdict.INCONCLUSIVE),
        ("VMM-01", "node-b", Verdict.INCONCLUSIVE),
    ]


def test_a_machine_that_answers_late_is_read_again(lab: Lab, fleet: Any) -> None:
    late = [{("unread", "file "): "the walk was not over in time"}, {PROGRAM: FILE}]
    lab.more = Late(late)
    found = machine_reference.state(fleet, "node-a")
    assert (found.gaps, [item.key for item in found.findings]) == ((), [PROGRAM[1]])
    assert len(lab.requests) == 2


_SLEEP = ("process", "/system.slice/ssh.service /usr/bin/sleep")


def test_a_process_that_has_ended_at_a_second_reading_is_no_finding(lab: Lab, fleet: Any) -> None:
    lab.more = Late([{_SLEEP: {"arguments": "sleep 1"}}, {}])
    found = machine_reference.look(fleet.lab, TOPOLOGY.machine("node-a"), Scope.WHOLE)
    assert (found.findings, found.ended) == ((), 1)
    assert found.counted.endswith("; 1 processes of a first reading had ended at the second")


def test_a_process_that_starts_again_under_another_name_is_a_finding(lab: Lab, fleet: Any) -> None:
    lab.more = Late([{_SLEEP: {"arguments": "sleep 1"}}, {_SLEEP: {"arguments": "sleep 2"}}])
    found = machine_reference.look(fleet.lab, TOPOLOGY.machine("node-a"), Scope.WHOLE)
    assert [item.key for item in found.findings] == [f"{_SLEEP[1]}: sleep 2"]


def test_a_process_beside_another_finding_counts_at_once(lab: Lab, fleet: Any) -> None:
    lab.more = Late([{_SLEEP: {"arguments": "sleep 1"}, ACCOUNT: ["0"]}])
    found = machine_reference.look(fleet.lab, TOPOLOGY.machine("node-a"), Scope.WHOLE)
    assert [item.domain for item in found.findings] == ["account", "process"]


@pytest.mark.parametrize(
    ("only", "whole", "reads"),
    [((), False, [3, 3]), ((), True, [3, 6]), (("NET",), False, [0, 0]), (("NET",), True, [3, 6])],
)
def test_a_run_of_all_controls_reads_whole_machines_first(
    lab: Lab, fleet: Any, only: tuple[str, ...], whole: bool, reads: list[int]
) -> None:
    watch, found = ReferenceWatch(fleet, only, whole), []
    for when in (BEGINNING, END):
        watch.look(when)
        fleet.new_phase()
        found.append(len(lab.requests))
    assert found == reads


def test_a_reading_that_others_need_in_the_same_phase_is_shared(lab: Lab, fleet: Any) -> None:
    ReferenceWatch(fleet, whole=True).look(BEGINNING)
    machine_reference.state(fleet, "node-a")
    assert len(lab.requests) == 3


def test_where_breaches_were_tried_programs_are_judged(lab: Lab, fleet: Any) -> None:
    (lab.folder / "breaches").mkdir()
    lab.more = {"node-a": {PROGRAM: FILE, ACCOUNT: ["0"]}}
    watch = ReferenceWatch(fleet, whole=True)
    watch.look(BEGINNING)
    assert _rows(watch) == [("VMM-01", "node-a", Verdict.FAIL)]
    assert all(Scope.PROGRAMS in text for text in watch.told)


@pytest.mark.parametrize(("focus", "only"), [("VMM-01", FILES), ("", SURFACE_COLLECTORS)])
def test_a_check_reads_what_it_needs(lab: Lab, fleet: Any, focus: str, only: tuple[str, ...]) -> None:
    """Without a focus, PRO-01 shares the reading of VMM-01."""
    fleet.new_phase(focus)
    lab.more = {"node-a": {PROGRAM: FILE, ("file", "/var/lib/undeclared"): FILE}}
    found = machine_reference.state(fleet, "node-a")
    assert [item.key for item in found.findings] == [PROGRAM[1]]
    assert lab.requests[0]["only"] == only
    assert (machine_reference.reading(fleet, "node-a") is None) is bool(focus)
    assert len(lab.requests) == 1


def test_a_machine_that_booted_from_an_image_has_no_reference(
    lab: Lab, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_reference, "started_from", lambda overlay: None)
    assert "did not start from saved memory" in machine_reference.state(fleet, "node-a").without
    assert "did not start from saved memory" in str(machine_reference.missing(lab, "node-a"))  # type: ignore[arg-type]
    assert lab.requests == []


def test_a_state_of_another_program_is_no_reference(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_inventory, "program_digest", lambda: "of another program")
    assert "another program" in machine_reference.state(fleet, "node-a").blind


def test_the_evidence_says_how_much_was_judged(fleet: Any, tmp_path: Path) -> None:
    ReferenceWatch(fleet, whole=True).look(BEGINNING)
    lines = [
        json.loads(line)
        for file in (tmp_path / "run/evidence").iterdir()
        for line in file.read_text().splitlines()
    ]
    assert {line["host"] for line in lines} == {machine.name for machine in TOPOLOGY.machines}
    assert all("records are judged" in line["request"] for line in lines)


def test_a_run_tells_how_much_was_judged(fleet: Any) -> None:
    watch = ReferenceWatch(fleet, whole=True)
    assert watch.told == []
    watch.look(BEGINNING)
    assert [text.partition(":")[0] for text in watch.told] == [item.name for item in TOPOLOGY.machines]
    assert all("records are judged" in text for text in watch.told)


def test_the_check_fails_by_programs_alone(lab: Lab, fleet: Any) -> None:
    lab.more = {"node-a": {ACCOUNT: ["0"]}, "node-b": {PROGRAM: FILE}}
    look = test_machine_integrity.test_programs_are_what_the_image_holds
    look(fleet, SimpleNamespace(name="node-a"))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="undeclared"):
        look(fleet, SimpleNamespace(name="node-b"))  # type: ignore[arg-type]
    lab.more = {"controller": {("unread", "file "): "it hangs"}}
    with pytest.raises(InstrumentError, match="could not be read whole"):
        look(fleet, SimpleNamespace(name="controller"))  # type: ignore[arg-type]
