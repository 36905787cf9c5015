"""Secrets and tenants' data are the owner's alone, whatever the umask is, and no link is followed where they
are written.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.cli import main
from testbed.data_files import topologies
from testbed.drivers.capabilities import doctor
from testbed.drivers.host import process
from testbed.drivers.host.accounts import Account, ourselves
from testbed.drivers.host.private_files import copy_secret, make_folder, write_secret
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.qmp import Monitor
from testbed.drivers.pki import Authority
from testbed.drivers.places.outer_host import Outer
from testbed.drivers.snapshots import machine_memory
from testbed.drivers.snapshots.checkpoint import Kept
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read
from testbed.verify.evidence import Evidence

LAB = resolve(read(topologies() / "one-node.yaml").spec)


@pytest.fixture(autouse=True, params=[0o000, 0o077], ids=["open umask", "closed umask"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def _open_to_others(folder: Path) -> list[str]:
    return [
        f"{_mode(path):04o} {path.name}"
        for path in folder.rglob("*")
        if path.is_file() and _mode(path) & 0o077
    ]


def test_a_secret_is_its_owners_and_appears_whole(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", b"a secret")
    write_secret(tmp_path / "key", b"another secret")
    assert (tmp_path / "key").read_bytes() == b"another secret"
    assert _mode(tmp_path / "key") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_link_where_a_secret_goes_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("of somebody else")
    for name in ("key", "copy"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    write_secret(tmp_path / "key", b"a secret")
    copy_secret(tmp_path / "key", tmp_path / "copy")
    assert (tmp_path / "elsewhere").read_text() == "of somebody else"
    assert (tmp_path / "copy").read_bytes() == b"a secret"
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(OSError, match="symbolic link"):
        copy_secret(tmp_path / "link", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_guessed_temporary_name_is_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".key.guessed.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", b"a secret")
    assert not (tmp_path / "elsewhere").exists()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "folder"
    source.mkdir()
    with pytest.raises(OSError, match="Invalid argument"):
        copy_secret(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_no_link_to_one(tmp_path: Path) -> None:
    os.umask(0o022)
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "link", 0o700)
    assert _mode(tmp_path / "elsewhere") == 0o755


def test_what_a_lab_keeps_is_closed_to_other_accounts(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "state", "demo")
    workspace.create()
    Authority(workspace.pki)
    workspace.connect("qemu:///system")
    with workspace.locked():
        evidence = Evidence(workspace.runs / "one/evidence")
        with evidence.of("NET-01"):
            evidence.record("node", "command", "true", "what a tenant has", 0.0)
    assert set(_open_to_others(workspace.folder)) == {"0644 .testbed"}
    for folder in (
        workspace.runs,
        workspace.pki,
        workspace.folder / "ssh",
        workspace.runs / "one",
        workspace.runs / "one/evidence",
    ):
        assert _mode(folder) == 0o700, folder
    assert _mode(workspace.root) == 0o711


def test_disks_and_identities_are_the_emulators_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "state", LAB.name)
    workspace.create()
    folder = workspace.machine("node")
    workspace.make(folder)
    base = tmp_path / "base.qcow2"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "1M"], what="no base", timeout=60)
    place = Outer(LAB, workspace, *[SimpleNamespace(links=list)] * 4, lambda _: None)  # type: ignore[arg-type]
    place.issue_identity(LAB.nodes[0], folder)
    machine_memory.make_overlay(base, folder / "vda.qcow2")
    assert (folder / "vda.qcow2").read_bytes().startswith(b"QFI")
    assert _open_to_others(folder) == []


def test_what_a_checkpoint_gives_back_is_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(Account, "give", lambda _, path: given.append(path.name))
    kept, target = tmp_path / "kept", tmp_path / "machine"
    for folder in (kept, target):
        make_folder(folder, 0o711)
    for name in ("vda.qcow2", "console.log", "identity.tar", "host_key.pub", "memory", "domain.xml"):
        (kept / name).write_text(name)
        (kept / name).chmod(0o644)
    (target / "identity.tar").symlink_to(kept / "memory")
    Kept(kept, {}).unpack(target, ourselves())
    assert sorted(given) == ["console.log", "identity.tar", "vda.qcow2"]
    assert _open_to_others(target) == []
    assert (kept / "memory").read_text() == "memory"


def test_saved_memory_is_written_for_the_owner(tmp_path: Path) -> None:
    answers = {"query-migrate": '{"return": {"status": "completed"}}'}

    def ask(request: str, files: object) -> str:
        return next((text for word, text in answers.items() if word in request), '{"return": {}}')

    Monitor(ask).save_memory(tmp_path / "memory", 5.0)
    assert _mode(tmp_path / "memory") == 0o600
    with pytest.raises(FileExistsError):
        Monitor(ask).save_memory(tmp_path / "memory", 5.0)


def test_what_the_command_line_writes_is_private_and_what_it_starts_is_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["testbed", "validate", "--schema"])
    with pytest.raises(SystemExit):
        main.main()
    (tmp_path / "report.md").write_text("a report")
    assert _mode(tmp_path / "report.md") == 0o600
    assert process.run(["sh", "-c", "umask"], what="no umask", timeout=10).strip() == "0022"


def test_doctor_tells_of_folders_that_others_can_change(tmp_path: Path) -> None:
    make_folder(tmp_path / "cache", 0o755)
    make_folder(tmp_path / "state", 0o777)
    found = {finding.name: finding for finding in doctor.examine(tmp_path / "cache", tmp_path / "state")}
    assert found[f"folder {tmp_path / 'cache'}"].ok
    told = found[f"folder {tmp_path / 'state'}"]
    assert not told.ok
    assert "0777" in told.fact
    assert "chmod go-w" in told.remedy
