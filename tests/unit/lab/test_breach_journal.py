"""A killed run of the checks leaves an entry of the breach that it opened.

So it is at whatever moment it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed import data_files
from testbed.cli import inspect, main, up
from testbed.drivers.host.workspace import Workspace
from testbed.engine.timing import Trace
from testbed.errors import Exit, ProvisioningError, TestbedError, UsageError
from testbed.lab.breach_journal import Entry, Journal, Record
from testbed.model.resolve import resolve
from testbed.report.result import Run, to_json
from testbed.topology_file.loader import read
from testbed.verify.runner.breach_recovery import close_left, declarations, find

ROOT = Path(__file__).parents[3]
TOPOLOGY = ROOT / "topologies/one-node.yaml"
LAB = resolve(read(TOPOLOGY).spec)
WHEN = "2026-01-01T00:00:00+00:00"
RECORD = Record("NET-01", "fleet", "opens it", WHEN, "a-run")
_NUMBERS = count()

# A wall is a file; the test gives the code that runs while it is opened, looked at and closed.
WALLS = """
import os, signal, time
from pathlib import Path
from testbed.verify.check import Breach, check

WALL, LOG = Path({folder!r}) / "wall", Path({folder!r}) / "log"
def opens(context):
    {at_open}
    WALL.write_text("open")
    {opened}
def closes(context):
    {at_close}
    WALL.unlink(missing_ok=True)
    with LOG.open("a") as log: log.write("closed ")
@check(id="NET-01", objective="it holds", severity="high", {local} breaches=(Breach("opens it", opens, closes, lambda _: WALL.exists()),))
def test_it(fleet, machine):
    fleet.evidence.record("node", "command", "look", "saw the wall", time.time())
    if WALL.exists():
        {in_force}
    assert not WALL.exists(), "open"
"""  # noqa: E501 - lines of a program
PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
from testbed.drivers.host.workspace import Workspace
from testbed.cli.invocation.interrupts import interruptible
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read
from testbed.verify.evidence import Evidence
from testbed.verify.interruptions import Interruptions
from testbed.verify.runner.plugin import run_checks
from testbed.verify.runner.proof_cache import ProofCache, Proving

interruptible()
state = Path(sys.argv[1])
topology = resolve(read(Path(sys.argv[2])).spec)
machines = {machine.name: SimpleNamespace(name=machine.name) for machine in topology.machines}
workspace = Workspace(state, "lab")
class Fleet(SimpleNamespace):
    def new_phase(self, focus=""): self.focus = focus
    def separate(self): return self
lab = SimpleNamespace(topology=topology, workspace=workspace)
fleet = Fleet(topology=topology, lab=lab, machines=machines, focus="", interruptions=Interruptions(),
              evidence=Evidence(workspace.runs / "a-run/evidence"))
proven = ProofCache(state / "proven.json", state, [], Proving.EVERYTHING)
done = run_checks(fleet, state / "checks", prove=proven, only=(), progress=lambda _: None)
print("interrupted" if done.interrupted else "ended", len(done.results))
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(tmp_path, "lab")
    found.create()
    return found


def _walls(folder: Path, **parts: str) -> Path:
    """Write a folder with one check file, and return it."""
    given = {name: parts.get(name, "pass") for name in ("at_open", "opened", "at_close", "in_force")}
    checks = folder / parts.get("name", "checks")
    checks.mkdir()
    (checks / f"test_wall_{next(_NUMBERS)}.py").write_text(
        WALLS.format(folder=str(folder), local=parts.get("local", ""), **given)
    )
    return checks


def _start(folder: Path) -> subprocess.Popen[str]:
    (folder / "lab").mkdir(exist_ok=True)
    argv = [sys.executable, "-c", PROGRAM, str(folder), str(TOPOLOGY)]
    # The tests may run under nohup, and a child inherits ignored signals.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    finally:
        signal.signal(signal.SIGHUP, before)


def _write(workspace: Workspace, record: Record = RECORD) -> Entry:
    with Journal(workspace).holding(record.control, record.case, record.breach, record.run) as entry:
        return entry


def _named(workspace: Workspace) -> list[tuple[str, str, str, str]]:
    records = [entry.record for entry in Journal(workspace).entries()]
    return [(item.control, item.case, item.breach, item.run) for item in records if item]


def test_an_entry_is_on_disk_before_the_breach_opens_and_stays_until_it_is_closed(
    workspace: Workspace, monkeypatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
    )
    journal = Journal(workspace)
    with suppress(KeyboardInterrupt), journal.holding("NET-01", "node", "a hole", "a-run"):
        assert [Path(path).suffix for path in synced] == [
            "",
            ".partial",
            "",
        ]  # the lab's folder, the entry, the journal's folder
        raise KeyboardInterrupt
    assert _named(workspace) == [("NET-01", "node", "a hole", "a-run")]
    with journal.holding("NET-02", "controller", "another", "a-run") as entry:
        assert len(journal.entries()) == 2  # of two lanes
        entry.closed = True
    assert _named(workspace) == [("NET-01", "node", "a hole", "a-run")]


def test_what_cannot_be_written_down_is_not_opened(workspace: Workspace) -> None:
    (workspace.folder / "breaches").write_text("in the way")
    with (
        pytest.raises(ProvisioningError, match="is not opened"),
        Journal(workspace).holding("NET-01", "node", "a hole", "a-run"),
    ):
        pytest.fail("the block ran")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"control": "NET-01"}', "\xff"])
def test_an_entry_that_cannot_be_read_is_one(workspace: Workspace, text: str) -> None:
    file = _write(workspace).file
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ProvisioningError, match="1 wall that") as error:
        Journal(workspace).require_closed()
    assert str(file) in error.value.fact


@pytest.mark.parametrize(
    ("moment", "open_"), [("at_open", False), ("opened", True), ("in_force", True), ("at_close", True)]
)
@pytest.mark.parametrize("local", ["", "local=True,"])
def test_whenever_a_run_is_killed_the_wall_that_it_opened_is_written_down(
    tmp_path: Path, moment: str, open_: bool, local: str
) -> None:
    _walls(tmp_path, local=local, **{moment: "os._exit(9)"})
    with _start(tmp_path) as process:
        assert process.wait(60) == 9
    assert (tmp_path / "wall").exists() == open_
    (control, case, breach, run), *_ = _named(Workspace(tmp_path, "lab"))
    assert (control, breach, run) == ("NET-01", "opens it", "a-run")
    assert case in ("controller", "node")
    with pytest.raises(ProvisioningError, match="that a breach opened") as error:
        Journal(Workspace(tmp_path, "lab")).require_closed()
    assert "'opens it' (NET-01" in error.value.fact
    assert "testbed up lab" in error.value.remedy


def test_a_wall_that_does_not_close_stays_written_down(tmp_path: Path) -> None:
    _walls(tmp_path, at_close="return")
    with _start(tmp_path) as process:
        assert process.wait(60) == 0
    assert (tmp_path / "wall").exists()
    assert len(_named(Workspace(tmp_path, "lab"))) == 1  # and no other was opened


def _signalled(folder: Path, *signals: tuple[float, int]) -> str:
    """Send signals after the given delays, once the wall is open, and return the run's output."""
    with _start(folder) as process:
        end = time.monotonic() + 60
        while not (folder / "wall").exists() and time.monotonic() < end:
            time.sleep(0.05)
        for seconds, number in signals:
            time.sleep(seconds)
            process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("local", ["", "local=True,"])
def test_a_signal_closes_the_wall_and_keeps_the_results(tmp_path: Path, number: int, local: str) -> None:
    _walls(tmp_path, in_force="time.sleep(1.5 if fleet.machines else 0)", local=local)
    assert _signalled(tmp_path, (0.2, number), (0.1, number)) == "interrupted 2\n"  # timeout(1) sends two
    assert not (tmp_path / "wall").exists()
    assert _named(Workspace(tmp_path, "lab")) == []


def test_after_a_signal_no_other_wall_of_a_lane_is_opened(tmp_path: Path) -> None:
    folder = _walls(tmp_path, in_force="time.sleep(1.5)", local="local=True,")
    (file,) = folder.iterdir()
    breach = 'Breach("opens it", opens, closes, lambda _: WALL.exists())'
    assert breach in file.read_text()
    file.write_text(file.read_text().replace(f"breaches=({breach},)", f"breaches=({breach},) * 9"))
    _signalled(tmp_path, (0.2, signal.SIGTERM))
    assert (tmp_path / "log").read_text().count("closed") <= 2  # of each lane the one that was open


def test_a_second_signal_while_a_wall_is_closed_leaves_word_of_it(tmp_path: Path) -> None:
    _walls(tmp_path, in_force="time.sleep(30)", at_close="time.sleep(20)")
    assert _signalled(tmp_path, (0.2, signal.SIGTERM), (4, signal.SIGTERM)).startswith("interrupted")
    assert (tmp_path / "wall").exists()
    assert len(_named(Workspace(tmp_path, "lab"))) == 1


@pytest.fixture
def lab(workspace: Workspace) -> Any:
    return SimpleNamespace(topology=LAB, workspace=workspace, hosts=[], closed=[], desired={}, places=[])


def test_what_is_written_down_is_found_again_and_closed(lab: Any, tmp_path: Path) -> None:
    folder = _walls(tmp_path, name=f"walls{next(_NUMBERS)}")
    _write(lab.workspace)
    (tmp_path / "wall").write_text("open")
    (lab.workspace.folder / "breaches/x.partial").write_text("")
    told: list[str] = []
    assert len(close_left(lab, folder, told.append)) == 1
    assert not (tmp_path / "wall").exists()
    assert [*(lab.workspace.folder / "breaches").iterdir()] == []
    assert "closed the breach 'opens it' (NET-01, fleet)" in told[0]
    assert close_left(lab, folder, told.append) == []


@pytest.mark.parametrize(
    ("record", "parts", "told"),
    [
        (Record("NET-01", "fleet", "no such", WHEN, "r"), {}, "no check of NET-01 declares it any more"),
        (Record("NET-02", "fleet", "opens it", WHEN, "r"), {}, "no check of NET-02 declares it any more"),
        (RECORD, {"at_close": "return"}, "it is still in force"),
        (RECORD, {"at_close": "next(iter(()))"}, "could not be reverted: StopIteration"),
    ],
)
def test_what_cannot_be_closed_stays_written_down(
    lab: Any, tmp_path: Path, record: Record, parts: dict[str, str], told: str
) -> None:
    folder = _walls(tmp_path, name=f"walls{next(_NUMBERS)}", **parts)
    entry = _write(lab.workspace, record)
    (tmp_path / "wall").write_text("open")
    with pytest.raises(ProvisioningError, match="1 of 1 breaches") as error:
        close_left(lab, folder, lambda _: None)
    assert told in error.value.fact
    assert "testbed down" in error.value.remedy
    assert entry.file.exists()


def test_a_hidden_check_file_is_not_taken_for_ours(lab: Any, tmp_path: Path) -> None:
    """A foreign folder of that name, placed first, must not decide how a wall is closed."""
    name = f"walls{next(_NUMBERS)}"
    folder = _walls(tmp_path, name=name)
    other = _walls(tmp_path / "lab", name=name)
    (other / next(folder.iterdir()).name).write_text("")
    list(declarations(other))
    _write(lab.workspace)
    with pytest.raises(ProvisioningError, match="cannot be loaded"):
        close_left(lab, folder, lambda _: None)


def test_every_breach_of_every_check_is_found_again_by_what_is_written_down() -> None:
    declared = list(declarations(data_files.checks()))
    assert len(declared) > 30
    for declaration in declared:
        for breach in declaration.breaches:
            found = find(declared, Record(declaration.id, "node", breach.name, WHEN, "a-run"))
            assert found is not None
            assert found.close is breach.close, (
                f"{declaration.id} has two breaches '{breach.name}', which are closed differently"
            )
            assert found.in_force is breach.in_force


@contextmanager
def _entered(topology: object, workspace: Workspace, *_: object) -> Iterator[Any]:
    yield SimpleNamespace(topology=topology, workspace=workspace, desired={}, places=[])


@pytest.fixture
def command(workspace: Workspace, monkeypatch) -> Callable[..., Any]:
    """A command line beside a lab that runs, and of which nothing is looked at."""
    (workspace.folder / "topology.yaml").write_text(
        TOPOLOGY.read_text().replace("name: one-node", "name: lab")
    )
    monkeypatch.setenv("TESTBED_STATE_DIR", str(workspace.root))
    for module in (main, inspect):
        monkeypatch.setattr(module, "entered", _entered)
        monkeypatch.setattr(module.observe, "observe", lambda *_: ({}, frozenset()))
        monkeypatch.setattr(module.build_inputs, "load_inputs", lambda **_: None)
        monkeypatch.setattr(module.lab_namespaces, "find", lambda *_: object())
    monkeypatch.setattr(main, "running_lab", lambda _: (LAB, workspace, None))
    monkeypatch.setattr(main, "interruptible", lambda: None)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["testbed", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0)

    return run


def test_check_gives_no_verdict_while_a_wall_is_open(
    command, workspace: Workspace, monkeypatch, capsys
) -> None:
    checked: list[object] = []
    monkeypatch.setattr(main, "check_walls", lambda *_, **__: checked.append(1))
    entry = _write(workspace)
    assert command("check", "lab") == Exit.PROVISIONING
    error = capsys.readouterr().err
    assert "'opens it' (NET-01, fleet)" in error
    assert "testbed up lab" in error
    assert checked == []
    Journal(workspace).remove(entry)
    assert command("check", "lab") == Exit.OK
    assert checked == [1]


def test_plan_and_status_name_the_open_wall(command, workspace: Workspace, capsys) -> None:
    words = (["plan", "lab"], ["plan", "lab", "--json"], ["status", "lab"], ["status", "lab", "--json"])
    entry = _write(workspace)
    for argv in words:
        assert command(*argv) == Exit.OK
        told = capsys.readouterr().out
        assert "opens it" in told
        assert "Nothing to do" not in told
        if argv == words[1]:
            assert json.loads(told)["empty"] is False
    Journal(workspace).remove(entry)
    for argv in words:
        command(*argv)
        assert "opens it" not in capsys.readouterr().out


def test_report_does_not_show_an_older_run_instead_of_one_that_was_cut_short(
    command, workspace: Workspace, capsys
) -> None:
    old = workspace.runs / "20260101T000000-aaaa"
    old.mkdir(parents=True)
    data = to_json(Run("lab", "d", {}, WHEN, 1.0, (), (), ()))
    (old / "result.json").write_text(json.dumps(data))
    _write(workspace)
    assert command("report", "lab", "--format", "json") == Exit.PROVISIONING
    assert "opens it" in capsys.readouterr().err
    (workspace.runs / "a-run").mkdir()
    (workspace.runs / "a-run/result.json").write_text(json.dumps(data))
    assert command("report", "lab", "--format", "json") == Exit.OK  # its own report says what is open


def test_up_converges_closes_and_converges_again(lab: Any, monkeypatch) -> None:
    """A breach may block our own access: breaches are closed even after a failed convergence."""
    steps: list[str] = []

    def converge(*_: object) -> list[object]:
        steps.append("converge")
        if len(steps) == 1:
            raise ProvisioningError("no", fact="-", remedy="-")
        return []

    monkeypatch.setattr(up.apply, "converge", converge)
    monkeypatch.setattr(
        "testbed.verify.runner.breach_recovery.close_left", lambda *_: steps.append("close") or ["it"]
    )
    _write(lab.workspace)
    up._converge(lab, Trace())
    assert steps == ["converge", "close", "converge"]
    assert lab.closed == ["it"]
    Journal(lab.workspace).remove(Journal(lab.workspace).entries()[0])
    up._converge(lab, Trace())
    assert steps[3:] == ["converge"]


def test_a_lab_with_an_open_wall_keeps_its_topology(workspace: Workspace) -> None:
    """Another topology has other guests: a breach opened on the old ones could not be closed."""
    workspace.topology_file.write_text(TOPOLOGY.read_text())
    entry = _write(workspace)
    other = resolve(read(ROOT / "topologies/two-tenants.yaml").spec)
    up._require_same(LAB, workspace)
    with pytest.raises(UsageError, match="cannot get another topology"):
        up._require_same(other, workspace)
    Journal(workspace).remove(entry)
    up._require_same(other, workspace)


def test_an_open_wall_is_not_saved(workspace: Workspace, monkeypatch) -> None:
    """A checkpoint would keep the breach, without the journal that closes it."""
    from testbed.cli import checkpoint  # noqa: PLC0415

    monkeypatch.setattr(checkpoint, "running_lab", lambda _: (LAB, workspace, None))
    monkeypatch.setattr(checkpoint, "entered", _entered)
    monkeypatch.setattr(checkpoint, "_require_saving", lambda *_: None)
    monkeypatch.setattr(
        checkpoint.build_inputs, "load_inputs", lambda: SimpleNamespace(images={}, environment=None)
    )
    monkeypatch.setattr(checkpoint.observe, "plan", lambda *_: pytest.fail("it was about to be saved"))
    _write(workspace)
    with pytest.raises(TestbedError, match="that a breach opened"):
        checkpoint.save("lab")
