"""`up` after one that was killed goes on from a checkpoint until the lab has machines; and `up --rebuild`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.cli import up
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.namespaces import lab_namespaces
from testbed.errors import UsageError
from testbed.lab.session import BuildInputs
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read
from tests.sim.simulator import INPUTS

GOOD = Path(__file__).parents[3] / "topologies/one-node.yaml"


class Entered(Exception):  # noqa: N818 - it ends the command where the test ends
    """The command is about to enter the lab."""


class Saved:
    """Stands in for a checkpoint of the lab."""

    name, saved = "mine", "2026-01-01T00:00:00+00:00"

    def __init__(self) -> None:
        self.unpacked: list[str] = []

    def unpack(self, workspace: Workspace) -> None:
        self.unpacked.append(workspace.lab)


@pytest.mark.parametrize("machines", [False, True])
def test_a_killed_up_goes_on_from_the_checkpoint_while_there_is_no_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: bool
) -> None:
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TESTBED_CACHE_DIR", str(tmp_path / "cache"))
    workspace, saved, entered = Workspace(tmp_path / "state", "one-node"), Saved(), list[Any]()
    workspace.create()
    if machines:
        (workspace.libvirt / "run/qemu").mkdir(parents=True)
        (workspace.libvirt / "run/qemu/one-node.node.xml").write_text("<domstatus/>")

    def shortened(ground: BuildInputs, *_: object, **__: object) -> BuildInputs:
        entered.append(ground.checkpoint)
        raise Entered

    topology = resolve(read(GOOD).spec)
    store = SimpleNamespace(find=lambda *_: (saved, topology))
    monkeypatch.setattr(
        lab_namespaces, "find", lambda *_: lab_namespaces.Enclosure("one-node", workspace.root, 1)
    )
    monkeypatch.setattr(up, "CheckpointStore", lambda *_: store)
    monkeypatch.setattr(up.doctor, "require", lambda *_: None)
    monkeypatch.setattr(up, "interruptible", lambda: None)
    monkeypatch.setattr(up.consent, "require_images", lambda *_, **__: None)
    monkeypatch.setattr(
        up.build_inputs, "prepare_inputs", lambda *_, **__: BuildInputs({}, INPUTS.environment)
    )
    monkeypatch.setattr(up, "_shortened", shortened)
    with pytest.raises(Entered):
        up.bring_up(GOOD, up.UpOptions(), lambda *_: None)
    assert entered == [None if machines else saved]
    assert saved.unpacked == ([] if machines else ["one-node"])
    assert not workspace.topology_file.exists()  # a running lab's is stored when the change is agreed to


@pytest.mark.parametrize(
    ("names", "running", "words"),
    [
        (["node", "nodeb", "x"], True, r"one-node has no machine 'nodeb', 'x'"),
        (["node"], False, "node cannot be rebuilt"),
    ],
)
def test_only_machines_of_a_running_lab_are_rebuilt(
    names: list[str], running: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is told before anything is baked."""
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "state"))
    found = lab_namespaces.Enclosure("one-node", tmp_path / "state", 1) if running else None
    monkeypatch.setattr(lab_namespaces, "find", lambda *_: found)
    monkeypatch.setattr(up.doctor, "require", lambda *_: None)
    monkeypatch.setattr(up, "interruptible", lambda: None)
    with pytest.raises(UsageError, match=words):
        up.bring_up(GOOD, up.UpOptions(rebuild=names), lambda *_: None)
