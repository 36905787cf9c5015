"""A whole run on a lab without machines: its files, the order of runs, and our own errors."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from testbed.cli import check, main
from testbed.cli.invocation import error_exit
from testbed.cli.output import terminal
from testbed.drivers.host.run_order import new_folder, place
from testbed.drivers.host.workspace import Workspace
from testbed.errors import Exit, ProvisioningError, UsageError
from testbed.model.resolve import resolve
from testbed.report.result import CheckResult, Verdict, content_of, exit_code
from testbed.topology_file.loader import read
from testbed.verify.runner import run
from testbed.verify.runner.proof_cache import Proving
from tests.fake_checks import TOPOLOGY, checks_of, declare

HOLDS = "def test_it(fleet):\n    assert not look(fleet), 'open'\n"
OPEN = "def test_it(fleet):\n    assert look(fleet), 'open'\n"


def _bug(*_: object, **__: object) -> Any:
    raise RuntimeError("a bug")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A lab whose machines have names and addresses, and whose only check passes."""
    topology = resolve(read(TOPOLOGY).spec)
    hosts = [
        SimpleNamespace(name=item.name, access=SimpleNamespace(address="192.0.2.1"))
        for item in topology.machines
    ]
    environment = SimpleNamespace(outer="tcg", inner="kvm", note="", versions={})
    folder = checks_of(tmp_path, declare() + HOLDS)
    monkeypatch.setattr(run.data_files, "checks", lambda: folder)
    monkeypatch.setattr(run, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(run, "DriftWatch", lambda *_: _Watch())
    monkeypatch.setattr(run, "ReferenceWatch", lambda *_: _Watch())
    monkeypatch.setattr(run, "HeartWatch", lambda *_: _Hearts())
    monkeypatch.setattr(run, "leftovers", SimpleNamespace(look=lambda _: {}, left_behind=lambda *_: []))
    return SimpleNamespace(
        topology=topology,
        hosts=hosts,
        host=lambda name: next(host for host in hosts if host.name == name),
        retried=[],
        inputs=SimpleNamespace(environment=environment, images={}),
        outer=SimpleNamespace(observe=dict),
        workspace=Workspace(tmp_path, "lab"),
        desired={},
        places={},
    )


class _Watch:
    """A look at a configuration in which nothing differs."""

    interrupted, trouble, results, told = False, (), (), ()

    def begin(self) -> None:
        pass

    def look(self, when: str) -> None:
        pass

    def end(self) -> None:
        pass


class _Hearts:
    """Heartbeats of no node."""

    told = ()

    def begin(self, **_: object) -> None:
        pass

    attacked = stop = judge = begin

    def among(self, results: Any) -> Any:
        return results


def _examine(
    lab: Any, prove: Proving = Proving.NOTHING, only: tuple[str, ...] = (), progress: Any = lambda _: None
) -> dict[str, Any]:
    folder = run.examine(lab, prove=prove, only=only, progress=progress)
    return content_of((folder / "result.json").read_text())


def test_a_run_is_written_whole(lab: Any) -> None:
    data = _examine(lab)
    assert (data["trouble"], data["controls"], data["not_looked_at"], exit_code(data)) == (
        [],
        ["NET-01"],
        [],
        Exit.OK,
    )
    folder = lab.workspace.latest_run()
    assert json.loads((folder / "matrix.json").read_text())
    assert (folder / data["checks"][0]["evidence"][0]).is_file()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("end_all", "ending the programs in guests and on machines: RuntimeError: a bug"),
        ("_write_matrix", "writing matrix.json: RuntimeError: a bug"),
        ("leftovers.left_behind", "looking for what checks have left behind: RuntimeError: a bug"),
    ],
)
def test_an_error_around_the_checks_is_trouble_of_the_run(
    lab: Any, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    owner, _, last = name.rpartition(".")
    monkeypatch.setattr(getattr(run, owner) if owner else run, last, _bug)
    data = _examine(lab, Proving.EVERYTHING)
    assert data["summary"]["pass"] == 1
    assert data["trouble"] == [told]
    assert exit_code(data) is Exit.INCONCLUSIVE


@pytest.mark.parametrize(("when", "words"), [("begin", "before"), ("end", "after")])
def test_a_look_at_the_configuration_that_breaks_off_is_trouble(
    lab: Any, monkeypatch: pytest.MonkeyPatch, when: str, words: str
) -> None:
    monkeypatch.setattr(_Watch, when, _bug)
    data = _examine(lab)
    assert data["trouble"] == [f"looking at the configuration {words} the checks: RuntimeError: a bug"]
    assert exit_code(data) is Exit.INCONCLUSIVE


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("begin", "taking the first heartbeats"),
        ("stop", "taking the last heartbeats"),
        ("judge", "judging the heartbeats"),
    ],
)
def test_heartbeats_that_break_off_are_trouble(
    lab: Any, monkeypatch: pytest.MonkeyPatch, when: str, told: str
) -> None:
    monkeypatch.setattr(_Hearts, when, _bug)
    data = _examine(lab)
    assert data["trouble"] == [f"{told}: RuntimeError: a bug"]
    assert exit_code(data) is Exit.INCONCLUSIVE


def test_what_heartbeats_show_is_among_the_results(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = CheckResult(
        id="DOS-01",
        case="node",
        objective="alive",
        severity="high",
        verdict=Verdict.FAIL,
        reason="a guest was lost",
        simulated=False,
        duration_s=1.0,
        evidence=(),
    )
    monkeypatch.setattr(_Hearts, "among", lambda _, results: [*results, row])
    assert exit_code(_examine(lab)) is Exit.FAIL


def test_progress_that_cannot_be_shown_is_trouble_of_the_run(lab: Any) -> None:
    data = _examine(lab, progress=_bug)
    assert data["trouble"][0] == "progress could not be shown: RuntimeError: a bug"
    assert exit_code(data) is Exit.INCONCLUSIVE


def test_nothing_is_begun_for_a_control_that_does_not_exist(lab: Any) -> None:
    with pytest.raises(UsageError, match="no check is selected by 'NET-99'"):
        _examine(lab, only=("NET-99",))
    assert not lab.workspace.runs.exists()


class Clock:
    """A clock that is set back an hour whenever it is read."""

    hours = 12

    def now(self, zone: Any) -> datetime:
        self.hours -= 1
        return datetime(2026, 1, 1, self.hours, tzinfo=zone)


def test_a_clock_that_is_set_back_hides_no_fail(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "datetime", Clock())
    assert exit_code(_examine(lab)) is Exit.OK
    (file,) = (tmp_path / "checks").glob("test_*.py")
    file.unlink()
    checks_of(tmp_path, declare() + OPEN)
    assert exit_code(_examine(lab)) is Exit.FAIL
    latest = content_of((lab.workspace.latest_run() / "result.json").read_text())
    assert latest["summary"]["fail"] == 1
    assert latest["started"] == "2026-01-01T10:00:00+00:00"


def test_runs_of_older_versions_come_first_and_unfinished_ones_count(tmp_path: Path) -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    for name in ("20991231T235959-beef", "notes", "20260101T000000-cafe"):
        (tmp_path / name).mkdir()
    folders = [new_folder(tmp_path, when) for _ in range(11)]
    assert sorted(folders, key=place) == folders
    assert place(folders[-1])[0] == 11
    assert max(tmp_path.iterdir(), key=place) == folders[-1]
    folders[3].rmdir()
    assert place(new_folder(tmp_path, when))[0] == 12
    (tmp_path / "999999-20260101T000000-cafe").mkdir()
    assert place(new_folder(tmp_path, when))[0] == 1_000_000
    assert max(tmp_path.iterdir(), key=place).name.startswith("1000000-")


def _check(lab: Any) -> None:
    check.check_walls(lab, prove=Proving.NOTHING, only=[], as_json=True)


ERRORS = [
    RuntimeError("a bug"),
    SystemExit(0),
    OSError(28, "No space left on device"),
    StopIteration(),
    MemoryError(),
]


def _fails(error: BaseException) -> Any:
    def fails(*_: object) -> Any:
        raise error

    return fails


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_in_place_of_a_result_is_no_verdict(
    lab: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("testbed.verify.runner.run._write", _fails(error))
    with pytest.raises(ProvisioningError, match="did not run to their end") as caught:
        _check(lab)
    assert caught.value.exit_code is Exit.PROVISIONING


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["testbed.report.formats.junit", "testbed.cli.check.out_json"])
@pytest.mark.parametrize(("body", "status"), [(HOLDS, Exit.PROVISIONING), (OPEN, Exit.FAIL)])
def test_a_verdict_is_not_lost_for_its_report(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    where: str, error: BaseException, body: str, status: Exit,
) -> None:  # fmt: skip
    (file,) = (tmp_path / "checks").glob("test_*.py")
    file.unlink()
    checks_of(tmp_path, declare() + body)
    monkeypatch.setattr(where, _fails(error))
    with pytest.raises(typer.Exit) as caught:
        _check(lab)
    assert caught.value.exit_code == status
    said = capsys.readouterr().err
    assert "report is not whole" in said
    assert ("OPEN WALLS" if status is Exit.FAIL else "ALL WALLS HOLD") in said
    assert content_of((lab.workspace.latest_run() / "result.json").read_text())["checks"]


def test_a_full_disk_leaves_no_half_result_and_its_error_has_the_verdict(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == "result.json":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_secret", full)
    with pytest.raises(ProvisioningError, match="cannot be stored") as caught:
        _check(lab)
    assert caught.value.exit_code is Exit.PROVISIONING
    assert "No space left on device; the verdict is: ALL WALLS HOLD: 1 pass" in caught.value.fact
    assert not list(lab.workspace.runs.rglob("result.json*"))


@pytest.mark.parametrize(("body", "status"), [(HOLDS, Exit.OK), (OPEN, Exit.FAIL)])
def test_a_pipe_that_closes_early_changes_neither_code_nor_result(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, status: Exit
) -> None:
    (file,) = (tmp_path / "checks").glob("test_*.py")
    file.unlink()
    checks_of(tmp_path, declare() + body)
    reading, writing = os.pipe()
    os.close(reading)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal._held(writing, None))
    found = error_exit._status(lambda: _code(lab))
    assert (found, terminal.finish(found)) == (status, status)
    assert content_of((lab.workspace.latest_run() / "result.json").read_text())["trouble"] == []
    os.close(writing)


def _code(lab: Any) -> int:
    try:
        _check(lab)
    except typer.Exit as error:
        return error.exit_code
    return 0


def test_a_run_without_a_matrix_is_told_all_the_same(
    lab: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_write_matrix", _bug)
    with pytest.raises(typer.Exit) as caught:
        check.check_walls(lab, prove=Proving.NOTHING, only=[], as_json=False)
    assert caught.value.exit_code == Exit.INCONCLUSIVE
    assert "INCONCLUSIVE: 1 pass" in capsys.readouterr().out


def test_an_error_that_nobody_foresaw_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python alone would end with 1, which says that a wall is open."""
    monkeypatch.setattr(sys, "argv", ["testbed", "validate"])
    monkeypatch.setattr(main, "app", _bug)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == Exit.PROVISIONING
    assert "RuntimeError: a bug" in capsys.readouterr().err
