"""`plan` on a machine that has nothing yet, its exit codes, and the numbers of a lab."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.cli import consent
from testbed.cli import main as command_line
from testbed.cli.context import topology_of
from testbed.cli.invocation.error_exit import status_of
from testbed.drivers.capabilities import canary
from testbed.drivers.host import process
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.namespaces import lab_namespaces
from testbed.errors import Exit, ProvisioningError, UsageError
from testbed.inventory.compare import Finding
from testbed.lab import session
from testbed.model.environment import Accelerator
from testbed.model.numbers import KEYS, Numbers
from testbed.plan.diff import Plan
from testbed.verify.machine_reference import MachineState

TOPOLOGY = str(Path(__file__).parents[3] / "topologies/one-node.yaml")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the folders of labs and images, which are not there yet."""
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TESTBED_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def fresh(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without state, without images and without a program that could be run."""
    monkeypatch.setenv("PATH", str(folders))
    for name in ("run", "require"):
        monkeypatch.setattr(process, name, lambda *_, **__: pytest.fail("something was started"))
    return folders


def _run(*words: str) -> int:
    return status_of(lambda: command_line.app(list(words), standalone_mode=False))


def test_plan_needs_no_images(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("plan", TOPOLOGY) == Exit.OK
    assert "create  outer: machine node" in capsys.readouterr().out
    assert list(fresh.iterdir()) == []


@pytest.mark.parametrize("words", [("--detailed-exitcode",), ("--detailed-exitcode", "--json")])
def test_something_to_do_has_an_exit_code_of_its_own(fresh: Path, words: tuple[str, ...]) -> None:
    assert fresh
    assert _run("plan", TOPOLOGY, *words) == Exit.CHANGES
    assert Exit.CHANGES not in {
        Exit.OK,
        Exit.FAIL,
        Exit.USAGE,
        Exit.INCONCLUSIVE,
        Exit.NOT_CAPABLE,
        Exit.PROVISIONING,
    }


def test_nothing_to_do_is_zero_and_a_wrong_file_is_not(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "diff", lambda *_: Plan(()))
    assert _run("plan", TOPOLOGY, "--detailed-exitcode") == Exit.OK
    assert _run("plan", str(fresh / "missing.yaml"), "--detailed-exitcode") == Exit.USAGE


def test_the_summary_counts_by_place(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fresh
    _run("plan", TOPOLOGY, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["empty"], found["possible"], found["destroys"]) == (False, True, False)
    assert sum(sum(counts.values()) for counts in found["places"].values()) == len(found["actions"])
    assert set(found["places"]) == {"outer", "controller", "node"}


@pytest.mark.parametrize(
    ("text", "want", "outer", "slowness"),
    [
        ('{"key": ["old"], "outer": "tcg", "slowness": 7.5}', None, "tcg", 7.5),
        ('{"key": ["old"], "outer": "kvm", "slowness": 1.0}', None, "kvm", 1.0),
        ('{"key": ["old"], "outer": "kvm", "slowness": 1.0}', "tcg", "tcg", 4.0),
        ("nonsense", None, "tcg", 4.0),
        ("[]", None, "tcg", 4.0),
    ],
)
def test_how_machines_run_is_what_was_found_last_or_a_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, want: str | None, outer: str, slowness: float
) -> None:
    monkeypatch.setattr(canary, "_KVM", tmp_path / "no device")
    (tmp_path / "canary.json").write_text(text)
    found = canary.likely(tmp_path, want=Accelerator(want) if want else None)
    assert (found.outer, found.slowness) == (outer, slowness)


@pytest.fixture
def lab(folders: Path) -> Workspace:
    """The folder of a lab, with the topology that was applied last."""
    workspace = Workspace(folders / "state", "one-node")
    workspace.create()
    workspace.topology_file.write_bytes(Path(TOPOLOGY).read_bytes())
    return workspace


def test_a_lab_keeps_its_numbers_until_it_is_taken_down(lab: Workspace) -> None:
    usual = session.load_applied(lab)
    network = next(usual.switches())
    session.remember_numbers(lab, Numbers({KEYS: {network.label: network.key + 1}}))
    assert lab.numbers.stat().st_mode & 0o077 == 0
    assert next(session.load_applied(lab).switches()).key == network.key + 1
    assert next(topology_of(TOPOLOGY)[0].switches()).key == network.key + 1
    lab.remove()
    assert not lab.folder.exists()
    assert topology_of(TOPOLOGY)[0] == usual


def test_numbers_that_cannot_be_read_are_an_error_with_a_remedy(lab: Workspace) -> None:
    lab.numbers.write_text("nonsense")
    with pytest.raises(ProvisioningError, match="cannot be read") as caught:
        session.load_applied(lab)
    assert "testbed down one-node" in caught.value.remedy
    assert _run("plan", TOPOLOGY) == Exit.PROVISIONING


FINDING = Finding("node", "files", "/etc/\n::error::x", "", "present", "absent", frozenset({"VMM-01"}))


@pytest.mark.parametrize(
    ("findings", "unread", "code"),
    [((), (), Exit.OK), ((FINDING,), (), Exit.CHANGES), ((), ("/etc: it hangs",), Exit.INCONCLUSIVE)],
)
def test_plan_shows_what_is_on_a_machine_and_follows_from_nothing(
    lab: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    findings: tuple[Finding, ...],
    unread: tuple[str, ...],
    code: Exit,
) -> None:
    assert lab
    judged = SimpleNamespace(
        comparison=SimpleNamespace(findings=findings, unread=unread),
        skipped=Counter(), scope="whole", judged=9, expected=Counter(),
    )  # fmt: skip
    state = MachineState(judgement=judged)  # type: ignore[arg-type]
    monkeypatch.setattr(command_line, "looks", lambda _, machines: {machines[-1].name: state})
    monkeypatch.setattr(lab_namespaces, "find", lambda *_: object())
    monkeypatch.setattr(
        command_line, "entered", lambda *_: nullcontext(SimpleNamespace(desired={}, places=[]))
    )
    monkeypatch.setattr(command_line.observe, "plan", lambda *_: Plan(()))
    assert _run("plan", TOPOLOGY, "--whole", "--detailed-exitcode") == code
    shown = capsys.readouterr().out
    assert ("testbed up one-node --rebuild node" in shown) == bool(findings)
    assert ("it hangs" in shown) == bool(unread)
    assert "\n::" not in shown
    _run("plan", TOPOLOGY, "--whole", "--json")
    (told,) = json.loads(capsys.readouterr().out)["machines"]
    assert (told["machine"], len(told["findings"]), told["not_read"]) == ("node", len(findings), [*unread])


def test_a_lab_that_does_not_run_has_nothing_to_read(lab: Workspace) -> None:
    assert lab
    assert _run("plan", TOPOLOGY, "--whole") == Exit.USAGE


def test_yes_is_an_option_of_up_and_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[Any] = []
    monkeypatch.setattr(command_line, "bring_up", lambda _, way, __: ways.append(way))
    for words in (("up", TOPOLOGY), ("up", TOPOLOGY, "--yes"), ("run", TOPOLOGY, "--yes")):
        _run(*words)
    assert [way.yes for way in ways] == [False, True, True]


def test_what_only_up_may_write_is_not_written_by_opening_a_lab(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` of another topology wrote the ssh configuration of machines that did not exist."""
    topology = session.load_applied(lab)
    monkeypatch.setattr(Hypervisor, "embed", lambda *_: SimpleNamespace(close=lambda: None))
    inputs: Any = SimpleNamespace(
        environment=canary.likely(lab.folder), images={}, memories={}, checkpoint=None
    )
    with session.open_lab(topology, lab, inputs):
        assert not lab.ssh_config.exists()
        session.settle(topology, lab)
    assert "Host node" in lab.ssh_config.read_text()


@pytest.mark.parametrize(
    ("runs", "yes", "terminal", "refused"),
    [
        (True, False, False, True),
        (True, True, False, False),
        (True, False, True, False),
        (False, False, False, False),
    ],
)
def test_no_image_is_baked_for_an_up_that_will_be_refused(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch, runs: bool, yes: bool, terminal: bool, refused: bool
) -> None:
    monkeypatch.setattr(lab_namespaces, "find", lambda *_: object() if runs else None)
    monkeypatch.setattr(consent, "attended", lambda: terminal)
    with pytest.raises(UsageError, match="would replace every machine") if refused else nullcontext():
        consent.require_images(lab, yes=yes)
