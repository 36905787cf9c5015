"""Drift of a lab before and after the checks, as rows of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_desired_state
from testbed.engine.apply import converge
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.resolve import resolve
from testbed.plan.resources import OUTER, Key, Kind, desired, places
from testbed.report.result import CheckResult, Verdict
from testbed.topology_file.loader import read
from testbed.verify.drift import OBJECTIVE, DriftWatch, look
from testbed.verify.evidence import Evidence
from testbed.verify.runner import run as runs
from testbed.verify.runner.proof_cache import Proving
from tests.sim.simulator import INPUTS, SimulatedPlace, World

TOPOLOGY = Path(__file__).parents[3] / "topologies/two-tenants.yaml"
KERNEL = Key("node-a", Kind.SETTING, "network-stack")
VOLUME = Key("node-b", Kind.VOLUME, "red/db.data.luks")
SWITCH = Key("controller", Kind.SWITCH, "red/app")
GUEST = Key("node-a", Kind.GUEST, "red/web")
LIMIT = Key("node-a", Kind.LIMIT, "red/web/app")


class Lab:
    """A simulated lab that is up."""

    def __init__(self) -> None:
        self.world, self.topology = World(), resolve(read(TOPOLOGY).spec)
        self.desired = desired(self.topology, INPUTS)
        self.places = [self.world.place(name) for name in places(self.topology)]
        self.outer = self.places[0]
        self.silent: dict[str, Exception] = {}
        converge(self.desired, self.places, lambda _: None)

    def host(self, name: str) -> Any:
        def wait(_: float) -> None:
            if name in self.silent:
                raise self.silent[name]

        return SimpleNamespace(wait=wait)

    def set(self, key: Key, name: str, value: object) -> None:
        self.world.resources[key][name] = value


class Fleet:
    """As much of a fleet as a watch needs."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.topology, self.evidence, self.shared = (
            lab,
            lab.topology,
            Evidence(folder),
            dict[str, Any](),
        )

    def observe_once(self, name: str, observe: Callable[[], Any]) -> Any:
        if name not in self.shared:
            self.shared[name] = observe()
        return self.shared[name]

    def new_phase(self, focus: str = "") -> None:
        self.shared.clear()


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.fixture
def run(lab: Lab, tmp_path: Path) -> Callable[..., list[tuple[str, str, str, str]]]:
    def run(
        between: Callable[[], None] = lambda: None, only: tuple[str, ...] = ()
    ) -> list[tuple[str, str, str, str]]:
        watch = DriftWatch(Fleet(lab, tmp_path / "evidence"), only)  # type: ignore[arg-type]
        watch.begin()
        between()
        watch.end()
        assert all(row.objective == OBJECTIVE and row.evidence for row in watch.results)
        return [(row.id, row.case, str(row.verdict), row.reason) for row in watch.results]

    return run


def test_a_lab_that_is_what_it_must_be_adds_no_row(run) -> None:
    assert run() == []


def test_a_difference_is_a_fail_of_its_control_and_of_no_other(lab, run) -> None:
    lab.set(
        KERNEL, "value", str(lab.desired[KERNEL].properties["value"]).replace("ip_forward 0", "ip_forward 1")
    )
    ((control, case, verdict, reason),) = run()
    assert (control, case, verdict) == ("NET-09", "node-a", "fail")
    assert reason == (
        "setting network-stack on node-a: found 'net/ipv4/ip_forward 1', wanted 'net/ipv4/ip_forward 0' "
        "(from the beginning to the end)"
    )


def test_differences_of_several_kinds_are_rows_of_their_own(lab, run) -> None:
    lab.set(VOLUME, "mode", "644")
    lab.set(SWITCH, "acls", [*lab.desired[SWITCH].properties["acls"], "from-lport 2000 allow: ip"])
    lab.set(LIMIT, "packets", 0)
    assert [row[:3] for row in run()] == [
        ("NET-01", "controller", "fail"),
        ("NET-12", "node-a", "fail"),
        ("STO-01", "node-b", "fail"),
    ]


def test_what_is_in_no_topology_is_a_fail(lab, run) -> None:
    lab.world.resources[Key("node-a", Kind.VOLUME, "red/foreign.raw")] = {
        "owner": 0,
        "mode": "600",
        "links": 1,
    }
    rows = run()
    assert {row[:3] for row in rows} == {("STO-01", "node-a", "fail"), ("DOS-04", "node-a", "fail")}
    assert "volume red/foreign.raw on node-a is not in the topology" in rows[0][3]


def test_what_a_check_has_repaired_without_a_word_is_named(lab, run) -> None:
    lab.set(VOLUME, "mode", "644")
    ((*_, verdict, reason),) = run(lambda: lab.set(VOLUME, "mode", "600"))
    assert verdict == "fail"
    assert "at the beginning, and no longer at the end: something in this run repaired it" in reason


def test_what_a_check_has_left_behind_is_named(lab, run) -> None:
    ((*_, verdict, reason),) = run(lambda: lab.set(VOLUME, "mode", "644"))
    assert verdict == "fail"
    assert reason.endswith("(at the end, and not at the beginning)")


def test_only_the_controls_that_were_asked_for_are_judged(lab, run) -> None:
    lab.set(VOLUME, "mode", "644")
    assert run(only=("NET",)) == []
    assert [row[0] for row in run(only=("sto-01",))] == ["STO-01"]


@pytest.mark.parametrize(
    "error", [ProvisioningError("it does not answer", fact="silence", remedy="wait"), ValueError("garbage")]
)
def test_a_machine_that_cannot_be_looked_at_makes_its_controls_inconclusive(lab, run, error) -> None:
    lab.set(VOLUME, "mode", "644")
    lab.silent["node-b"] = error
    rows = run(only=("STO", "NET-09"))
    assert [row[:3] for row in rows] == [
        (control, "node-b", "inconclusive")
        for control in ("NET-09", "STO-01", "STO-02", "STO-03", "STO-05", "STO-06", "STO-07")
    ]
    assert "node-b could not be looked at (at the beginning)" in rows[0][3]


def test_one_that_falls_silent_later_takes_nothing_back(lab, run) -> None:
    lab.set(VOLUME, "mode", "644")
    rows = {
        row[:3]: row[3]
        for row in run(lambda: lab.silent.update({"node-b": ValueError("gone")}), only=("STO",))
    }
    unseen = {
        (control, "node-b", "inconclusive") for control in ("STO-02", "STO-03", "STO-05", "STO-06", "STO-07")
    }
    assert set(rows) == {("STO-01", "node-b", "fail")} | unseen
    assert rows["STO-01", "node-b", "fail"].endswith("(at the beginning)")


def test_a_machine_that_does_not_run_is_not_waited_for(lab) -> None:
    lab.set(Key(OUTER, Kind.MACHINE, "node-b"), "state", "paused")
    lab.silent["node-b"] = AssertionError("asked")
    found = look(lab)
    assert found.blind == {"node-b": "it is paused"}
    assert found.open() == []


def test_an_outer_machine_that_cannot_be_looked_at_hides_all(lab) -> None:
    class Broken(SimulatedPlace):
        def observe(self) -> Any:
            raise ProvisioningError("libvirt does not answer", fact="silence", remedy="wait")

    lab.outer = Broken(lab.world, OUTER)
    assert set(look(lab).blind) == {OUTER, "controller", "node-a", "node-b"}


@pytest.mark.parametrize("state", ["silent", "crashed", "paused", ""])
def test_a_guest_that_does_not_run_opens_no_wall(lab, run, state) -> None:
    if state:
        lab.set(GUEST, "state", state)
    else:
        del lab.world.resources[GUEST]
    if state in ("crashed", ""):
        del lab.world.resources[LIMIT]
    if state == "crashed":
        lab.set(GUEST, "confinement", "none")
    assert run() == []
    assert any(item.key == GUEST for item in look(lab).idle())


def test_a_guest_that_the_checks_have_stopped_is_told_at_the_end(lab, tmp_path: Path) -> None:
    watch = DriftWatch(Fleet(lab, tmp_path / "evidence"))  # type: ignore[arg-type]
    watch.begin()
    lab.set(GUEST, "state", "crashed")
    assert watch.trouble == []
    watch.end()
    (told,) = watch.trouble
    assert told.startswith("after the checks: ")
    assert "red/web" in told


def test_a_limit_that_is_gone_while_its_guest_runs_is_a_wall(lab, run) -> None:
    del lab.world.resources[LIMIT]
    assert [row[:3] for row in run()] == [("NET-12", "node-a", "fail")]


def test_a_guest_that_runs_without_a_profile_is_a_wall(lab, run) -> None:
    lab.set(GUEST, "confinement", "none")
    assert [row[:3] for row in run()] == [("PRC-02", "node-a", "fail")]


def test_the_check_of_the_whole_says_what_differs_and_what_it_did_not_see(lab, tmp_path) -> None:
    judge = test_desired_state.test_configuration_is_what_the_topology_says
    judge(Fleet(lab, tmp_path))
    lab.set(GUEST, "state", "silent")
    with pytest.raises(InstrumentError, match="do not run"):
        judge(Fleet(lab, tmp_path))
    lab.silent["node-b"] = ValueError("garbage")
    with pytest.raises(InstrumentError, match="node-b could not be looked at"):
        judge(Fleet(lab, tmp_path))
    lab.set(KERNEL, "value", "")
    with pytest.raises(AssertionError, match="setting network-stack on node-a"):
        judge(Fleet(lab, tmp_path))


def test_an_interrupt_at_the_end_keeps_what_was_seen(lab, tmp_path) -> None:
    lab.set(VOLUME, "mode", "644")
    watch = DriftWatch(Fleet(lab, tmp_path))  # type: ignore[arg-type]
    watch.begin()

    class Stopped(SimulatedPlace):
        def observe(self) -> Any:
            raise KeyboardInterrupt

    lab.outer = Stopped(lab.world, OUTER)
    watch.end()
    assert watch.interrupted
    assert [row.verdict for row in watch.results] == [Verdict.FAIL]
    assert watch.trouble[0].startswith("interrupted")


def test_a_run_looks_before_and_after_its_checks(lab, tmp_path, monkeypatch) -> None:
    """A difference that no check covers is in the result, and so is one left by a check."""
    environment = SimpleNamespace(outer="tcg", inner="kvm", note="", versions={})
    lab.inputs = SimpleNamespace(environment=environment, images={})
    lab.workspace = SimpleNamespace(runs=tmp_path / "runs", folder=tmp_path, lab="lab")
    lab.hosts, lab.retried = [SimpleNamespace(name="node-a", wait=lambda _: None)], ()
    fleet = Fleet(lab, tmp_path / "evidence")
    fleet.matrix, fleet.reach, fleet.instruments = SimpleNamespace(cells=()), {}, {}
    monkeypatch.setattr(runs, "Fleet", SimpleNamespace(of=lambda *_: fleet))
    monkeypatch.setattr(runs, "end_all", lambda _: None)
    monkeypatch.setattr(runs, "leftovers", SimpleNamespace(look=lambda _: {}, left_behind=lambda *_: []))

    def checks(*_: object, **__: object) -> SimpleNamespace:
        lab.set(VOLUME, "mode", "644")
        return SimpleNamespace(results=[], errors=[], interrupted=False, revived=[])

    monkeypatch.setattr(runs, "run_checks", checks)
    row = CheckResult("VMM-01", "node-a", "", "high", Verdict.FAIL, "undeclared", False, 0.0, ())
    looks: list[str] = []
    monkeypatch.setattr(
        runs,
        "ReferenceWatch",
        lambda *_: SimpleNamespace(look=looks.append, results=[row], told=["node-a: judged"]),
    )
    still = {"begin": list, "attacked": list, "stop": list, "judge": lambda **_: None, "told": []}
    monkeypatch.setattr(runs, "HeartWatch", lambda *_: SimpleNamespace(**still, among=list))
    lab.set(KERNEL, "value", "")
    folder = runs.examine(lab, prove=Proving.NOTHING, only=(), progress=lambda _: None)
    data = json.loads((folder / "result.json").read_text())
    told = {(row["id"], row["case"], row["verdict"]): row["reason"] for row in data["checks"]}
    assert set(told) == {
        ("NET-09", "node-a", "fail"),
        ("STO-01", "node-b", "fail"),
        ("VMM-01", "node-a", "fail"),
    }
    assert looks == ["at the beginning", "at the end"]
    assert "from the beginning to the end" in told["NET-09", "node-a", "fail"]
    assert "at the end, and not at the beginning" in told["STO-01", "node-b", "fail"]
