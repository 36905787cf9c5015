"""Foreign folders survive every verb that removes files, whatever its arguments."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.data_files import playbooks
from testbed.drivers.host import ownership
from testbed.drivers.host.content_store import CHECKPOINT, IMAGE, claim, clear_leftovers, entries
from testbed.drivers.host.private_files import make_folder
from testbed.drivers.host.workspace import Workspace, cache_root, labs, state_root
from testbed.drivers.images.cache import ImageCache
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.snapshots import checkpoint as checkpoints
from testbed.drivers.snapshots import machine_memory
from testbed.errors import MachineError, UsageError
from testbed.lab import session

KEY = "0123456789abcdef"
OTHER_UID = 4711
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder that does not exist yet, and no labs of the machine that runs the test."""
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TESTBED_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(lab_namespaces, "enclosures", lambda *_: iter(()))
    return tmp_path / "state"


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["testbed", *words])
        with pytest.raises(SystemExit) as caught:
            main.main()
        told = capsys.readouterr()
        return int(caught.value.code or 0), told.out + told.err

    return call


@pytest.fixture
def stranger(tmp_path: Path, root: Path) -> Iterator[Path]:
    """A folder of another origin that looks like a lab; it must survive."""
    folder = tmp_path / "project"
    for name in ("v", "m", "src"):
        (folder / name).mkdir(parents=True)
    for name in ("topology.yaml", "lock", "src/work"):
        (folder / name).write_text("the work of a year")
    before = sorted(folder.rglob("*"))
    yield folder
    assert sorted(folder.rglob("*")) == before
    assert (folder / "src/work").read_text() == "the work of a year"


def _lab(root: Path, name: str = "demo") -> Workspace:
    workspace = Workspace(root, name)
    workspace.create()
    workspace.topology_file.write_text("a topology")
    (workspace.machine("node") / "x").parent.mkdir(parents=True, exist_ok=True)
    (workspace.machine("node") / "vda.qcow2").write_text("a disk")
    return workspace


@pytest.mark.parametrize("kind", ["absolute", "relative", "dot", "dots", "slash", "name"])
def test_down_removes_no_folder_that_it_is_pointed_at(
    kind: str, run: Run, root: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lab(root)
    monkeypatch.chdir(stranger)
    words = {
        "absolute": str(stranger),
        "relative": "../project",
        "dot": ".",
        "dots": "..",
        "slash": "demo/",
        "name": "../state/demo",
    }
    status, told = run("down", words[kind])
    assert status == 2, told
    assert "observed:" in told
    assert "to do:" in told
    assert labs(root) == ["demo"]


def test_down_of_nothing_is_no_way_to_say_everything(run: Run, root: Path) -> None:
    _lab(root)
    status, told = run("down", "")
    assert (status, labs(root)) == (2, ["demo"])
    assert "no name of a lab: ''" in told


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc", "a\0b", "-a", "A", "demo\n", "\x1b[31m", "a" * 21]
)
def test_what_breaks_the_rule_of_names_is_never_part_of_a_path(name: str, root: Path) -> None:
    with pytest.raises(UsageError, match="no name of a lab"):
        Workspace(root, name)
    with pytest.raises(UsageError, match="no name of a machine"):
        _ = Workspace(root, "demo").machine(name)


def test_a_folder_without_the_mark_stays_where_labs_are(run: Run, root: Path, stranger: Path) -> None:
    _lab(root)
    stranger.rename(root / "project")
    try:
        for words in (("down", "project"), ("prune",)):
            status, told = run(*words)
            assert "project" in told
            assert status == (2 if words[0] == "down" else 0)
            assert (root / "project/src/work").exists()
    finally:
        (root / "project").rename(stranger)
    assert not (root / "demo").exists()  # does not run, so prune has removed it


def test_prune_leaves_a_lab_that_came_up_meanwhile(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` may hold the lock while `prune` looks."""
    _lab(root)
    monkeypatch.setattr(lab_namespaces, "enclosures", lambda *_: [])
    monkeypatch.setattr(lab_namespaces, "find", lambda name, folder: (name, folder))
    destroyed: list[Workspace] = []
    monkeypatch.setattr(session, "destroy", destroyed.append)
    status, _ = run("prune")
    assert (status, destroyed) == (0, [])


@pytest.mark.parametrize(
    "content", ["testbed lab other\n", "testbed state folder\n", "", "testbed lab project of somebody\n"]
)
def test_the_mark_of_something_else_is_no_mark(content: str, run: Run, root: Path) -> None:
    _lab(root)
    folder = root / "project"
    folder.mkdir()
    (folder / ownership.MARK).write_text(content)
    status, told = run("down", "project")
    assert status == 2, told
    assert folder.exists()


def test_a_lab_that_is_a_link_is_not_followed(run: Run, root: Path, stranger: Path) -> None:
    _lab(root)
    (root / "project").symlink_to(stranger)
    status, told = run("down", "project")
    assert status == 2
    assert "symbolic link" in told
    assert (root / "project").is_symlink()


def test_a_link_to_a_marked_folder_is_no_lab(root: Path, tmp_path: Path) -> None:
    _lab(root)
    (root / "demo").rename(tmp_path / "elsewhere")
    (root / "demo").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no testbed lab demo"):
        Workspace(root, "demo").remove()
    assert (tmp_path / "elsewhere/m/node/vda.qcow2").exists()


def test_a_mark_that_is_a_link_does_not_count(root: Path, tmp_path: Path) -> None:
    _lab(root)
    (root / "project").mkdir()
    (tmp_path / "mark").write_text(f"{ownership.lab_mark('project')}\n")
    (root / "project" / ownership.MARK).symlink_to(tmp_path / "mark")
    assert not ownership.marked(root / "project", ownership.lab_mark("project"))


def test_links_in_a_lab_are_removed_and_what_they_lead_to_stays(run: Run, root: Path, stranger: Path) -> None:
    workspace = _lab(root)
    (workspace.folder / "elsewhere").symlink_to(stranger)
    (workspace.machine("node") / "elsewhere").symlink_to(stranger)
    workspace.runs.rmdir()
    workspace.runs.symlink_to(stranger / "v")  # which is empty
    assert run("down", "demo")[0] == 0
    assert not workspace.folder.exists()


@pytest.mark.parametrize("verb", [("down", "project"), ("prune",)])
def test_a_wrong_state_folder_is_left_alone(
    verb: tuple[str, ...], run: Run, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_STATE_DIR", str(stranger.parent))
    status, told = run(*verb)
    assert status == (2 if verb[0] == "down" else 0)
    assert "project" in told


def test_up_makes_no_state_folder_out_of_one_of_somebody_elses(root: Path, stranger: Path) -> None:
    with pytest.raises(UsageError, match="no testbed state folder") as caught:
        Workspace(stranger, "demo").claim()
    assert "lock, m, src and 2 more" in caught.value.fact
    assert f"echo {ownership.STATE} > {stranger}/.testbed" in caught.value.remedy


def test_the_remedy_for_labs_of_an_earlier_version_works(root: Path) -> None:
    workspace = _lab(root)
    (root / ownership.MARK).unlink()
    (workspace.folder / ownership.MARK).unlink()
    with pytest.raises(UsageError) as caught:
        workspace.claim()
    os.system(caught.value.remedy.partition("made it: ")[2])
    with pytest.raises(UsageError) as caught:
        workspace.claim()
    os.system(caught.value.remedy.partition("made it: ")[2])
    workspace.claim()
    workspace.remove()
    assert not workspace.folder.exists()


def test_a_lab_goes_and_its_reports_stay_with_their_mark(root: Path) -> None:
    workspace = _lab(root)
    (workspace.runs / "one").mkdir()
    workspace.remove()
    assert sorted(path.name for path in workspace.folder.iterdir()) == [ownership.MARK, "runs"]
    (workspace.runs / "one").rmdir()
    workspace.create()
    workspace.remove()
    assert sorted(path.name for path in root.iterdir()) == [ownership.MARK]


def test_a_killed_claim_is_taken_up_again(root: Path) -> None:
    workspace = Workspace(root, "demo")
    make_folder(workspace.folder, 0o711)
    (root / f".{ownership.MARK}.0123.partial").write_text("half a")
    with pytest.raises(UsageError):  # the lab's folder is no state folder
        workspace.claim()
    workspace.folder.rmdir()
    workspace.claim()
    workspace.require()


def test_what_is_mounted_in_a_lab_is_no_part_of_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = _lab(root)
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(ownership, "_MOUNTS", table)
    for point in (workspace.folder, workspace.machine("node"), workspace.folder / "a b"):
        escaped = str(point).replace(" ", "\\040")  # as the kernel writes it
        table.write_text(f"36 35 98:0 / {escaped} rw - ext4 /dev/x rw\n")
        with pytest.raises(UsageError, match="is not removed") as caught:
            ownership.require_no_mount(workspace.folder)
        assert str(point) in caught.value.fact
    table.write_text(f"36 35 98:0 / {workspace.folder}-other rw - ext4 /dev/x rw\n")
    ownership.require_no_mount(workspace.folder)


def test_a_lab_that_cannot_be_removed_runs_on(
    run: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, ended = _lab(root), []
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 98:0 / {workspace.runs} rw - ext4 /dev/x rw\n")
    monkeypatch.setattr(ownership, "_MOUNTS", table)
    monkeypatch.setattr(lab_namespaces, "find", lambda *_: "the lab's")
    monkeypatch.setattr(lab_namespaces, "destroy", ended.append)
    status, told = run("down", "demo")
    assert (status, ended) == (2, [])
    assert f"umount {workspace.runs}" in told
    table.write_text("")
    assert run("down", "demo")[0] == 0
    assert ended == ["the lab's"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize("spoil", ["owner", "group", "world", "above"])
def test_a_state_folder_that_others_can_change_is_refused(
    spoil: str, run: Run, root: Path, tmp_path: Path
) -> None:
    _lab(root)
    changes: dict[str, Callable[[], object]] = {
        "owner": lambda: os.chown(root, OTHER_UID, OTHER_UID),
        "group": lambda: root.chmod(0o775),
        "world": lambda: root.chmod(0o1777),
        "above": lambda: tmp_path.chmod(0o777),
    }
    changes[spoil]()
    for words in (("down", "demo"), ("prune",), ("check", "demo"), ("report", "demo")):
        status, told = run(*words)
        assert status == 4, (words, told)
        assert "not safe to use" in told
    with pytest.raises(MachineError):
        Workspace(root, "demo").claim()
    assert (root / "demo/m/node/vda.qcow2").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_a_way_over_a_link_of_somebody_else_is_refused(root: Path, tmp_path: Path) -> None:
    _lab(root)
    (tmp_path / "way").symlink_to(root)
    assert ownership.distrust(tmp_path / "way/demo") == ""
    os.chown(tmp_path / "way", OTHER_UID, OTHER_UID, follow_symlinks=False)
    assert f"belongs to uid {OTHER_UID}" in ownership.distrust(tmp_path / "way/demo")


def test_an_empty_variable_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_STATE_DIR", "")
    monkeypatch.setenv("TESTBED_CACHE_DIR", "")
    assert Path.cwd() not in (state_root(), cache_root())


def test_a_lab_comes_before_a_file_of_its_name(
    run: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, other = _lab(root), _lab(root, "other")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("name: other")
    assert run("down", "demo")[0] == 0
    assert (workspace.folder.exists(), other.folder.exists()) == (False, True)


def test_no_machine_of_another_folder_has_a_console(run: Run, root: Path) -> None:
    workspace = _lab(root)
    workspace.topology_file.write_text(
        (playbooks().parent / "topologies/one-node.yaml").read_text().replace("name: one-node", "name: demo")
    )
    (workspace.folder / "console.log").write_text("a secret")
    status, told = run("console", "demo", "..")
    assert status == 2
    assert "a secret" not in told


@pytest.fixture
def foreign(tmp_path: Path, root: Path) -> Path:
    """A folder of many programs' caches, as ~/.cache is."""
    cache = tmp_path / "cache"
    for name in (
        "browser",
        f"app-{KEY}",
        f"golden-app-{KEY}",
        "checkpoint-app",
        f"node-{KEY}.partial-999999999",
    ):
        (cache / name).mkdir(parents=True)
        for manifest in ("manifest.json", "golden.json", "checkpoint.json"):
            (cache / name / manifest).write_text(json.dumps({"name": "node", "key": "another"}))
    for name in ("movie.partial-999999999", f"base-app-{KEY}.tar", "node.log", "canary.json", "proven.json"):
        (cache / name).write_text("somebody else's")
    return cache


def test_image_prune_and_rm_leave_a_foreign_cache_folder_alone(run: Run, foreign: Path) -> None:
    before = sorted(foreign.rglob("*"))
    for words in (("image", "prune"), ("image", "rm", "node"), ("checkpoint", "rm", "app")):
        status, told = run(*words)
        assert status == 2, (words, told)
        assert sorted(foreign.rglob("*")) == before
    assert clear_leftovers(foreign / "browser") == []


def test_image_prune_keeps_checkpoints_proofs_memory_and_strangers(tmp_path: Path, root: Path) -> None:
    cache = tmp_path / "cache"
    claim(cache)
    kept = [
        "browser",
        "checkpoint-mine",
        f"golden-node-{KEY}",
        "movie.partial-999999999",
        "notes-0123",
        f"golden-other-{KEY}.partial-1",
    ]
    gone = [f"guest-{KEY}", f"golden-node-{KEY}.partial-999999999", "checkpoint-mine.partial-1"]
    for name in (*kept, *gone):
        (cache / name).mkdir()
    (cache / f"guest-{KEY}/manifest.json").write_text(
        json.dumps({"name": "guest", "key": KEY, "digests": {}, "baked": ""})
    )
    (cache / "checkpoint-mine/checkpoint.json").write_text(
        json.dumps({"name": "mine", "lab": "demo", "saved": "", "made": {}, "digests": {}})
    )
    memory = {"role": "node", "key": KEY, "saved": "", "made": {}, "digests": {}}
    (cache / f"golden-node-{KEY}/golden.json").write_text(json.dumps(memory))
    (cache / f"controller-{KEY}").symlink_to(cache / "browser")
    for name in ("proven.json", "canary.json", "node.log", f"base-guest-{KEY}.tar"):
        (cache / name).write_text("{}")
    removed = {path.name for path in ImageCache(cache, playbooks()).prune()}
    assert removed == {*gone, f"base-guest-{KEY}.tar"}
    assert {path.name for path in cache.iterdir()} == {
        *kept, ownership.MARK, "proven.json", "canary.json", "node.log", f"controller-{KEY}",
    }  # fmt: skip
    assert [saved.role for saved in machine_memory.stored(cache)] == ["node"]


def test_a_manifest_counts_only_in_the_folder_of_its_name(tmp_path: Path, root: Path) -> None:
    cache = tmp_path / "cache"
    for folder, name, key in (
        ("project", "node", KEY),
        (f"node-{KEY}", "node", KEY),
        (f"guest-{KEY}", "node", KEY),
    ):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "manifest.json").write_text(json.dumps({"name": name, "key": key}))
    (cache / f"controller-{KEY}").mkdir()
    (cache / f"controller-{KEY}/manifest.json").write_text("[[")
    assert [path.name for path, _ in entries(cache, IMAGE)] == [f"node-{KEY}"]
    (cache / f"node-{KEY}").rename(tmp_path / "elsewhere")
    (cache / f"node-{KEY}").symlink_to(tmp_path / "elsewhere")
    assert list(entries(cache, IMAGE)) == []
    (cache / "checkpoint-a").mkdir()
    (cache / "checkpoint-a/checkpoint.json").write_text(json.dumps({"name": "b"}))
    assert list(entries(cache, CHECKPOINT)) == []
    assert checkpoints.stored(cache) == []


def test_the_cache_of_an_earlier_version_is_known_by_its_images(tmp_path: Path, root: Path) -> None:
    cache = tmp_path / "cache"
    (cache / f"node-{KEY}").mkdir(parents=True)
    (cache / f"node-{KEY}/manifest.json").write_text(
        json.dumps({"name": "node", "key": KEY, "digests": {}, "baked": ""})
    )
    assert [path.name for path in ImageCache(cache, playbooks()).prune()] == [f"node-{KEY}"]
    assert ownership.marked(cache, ownership.CACHE)
