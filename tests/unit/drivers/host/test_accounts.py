"""Every lab's emulators have an account that no other lab's have, and what they may open is theirs alone."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.drivers.host import accounts
from testbed.drivers.host import workspace as workspaces
from testbed.drivers.host.accounts import FREEZER, NUMBERS, WITHIN, Account, assign, of_lab, ourselves
from testbed.drivers.host.content_store import take_back
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.errors import MachineError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "privileged", lambda: True)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    return folder


def test_labs_of_all_state_folders_have_different_accounts(tmp_path: Path, registry: Path) -> None:
    folders = [_folder(tmp_path, name) for name in ("s1/red", "s1/blue", "s2/red", "s2/blue")]
    for folder in folders:
        assign(folder, registry)
    found = {of_lab(folder).uid for folder in folders}
    assert len(found) == len(folders)
    assert all(number in NUMBERS and number != FREEZER for number in found)
    assert {of_lab(folder).gid for folder in folders} == found


def test_a_lab_keeps_its_account(tmp_path: Path, registry: Path) -> None:
    folder = _folder(tmp_path, "s/red")
    assign(folder, registry)
    before = of_lab(folder)
    assign(folder, registry)
    (tmp_path / "link").symlink_to(tmp_path / "s")
    assign(tmp_path / "link/red", registry)
    assert of_lab(folder) == before
    assert len(list(registry.iterdir())) == 1


def test_a_copied_lab_gets_an_account_of_its_own(tmp_path: Path, registry: Path) -> None:
    first, copy = _folder(tmp_path, "s/red"), _folder(tmp_path, "t/red")
    assign(first, registry)
    (copy / "account").write_bytes((first / "account").read_bytes())
    assign(copy, registry)
    assert of_lab(copy) != of_lab(first)


def test_the_account_of_a_lab_that_is_gone_is_free_again(tmp_path: Path, registry: Path) -> None:
    first, second = _folder(tmp_path, "s/red"), _folder(tmp_path, "s/blue")
    assign(first, registry)
    before = of_lab(first)
    (first / "account").unlink()  # as `down` does
    assign(second, registry)
    assert of_lab(second) == before
    assign(first, registry)
    assert of_lab(first) != before


def test_an_account_that_the_machine_knows_is_not_taken(
    tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [SimpleNamespace(pw_uid=NUMBERS[0]), SimpleNamespace(pw_uid=NUMBERS[2])]
    monkeypatch.setattr(pwd, "getpwall", lambda: known)
    folders = [_folder(tmp_path, name) for name in ("s/red", "s/blue")]
    for folder in folders:
        assign(folder, registry)
    assert [of_lab(folder).uid for folder in folders] == [NUMBERS[1], NUMBERS[3]]


def test_when_every_number_is_taken_it_is_told(
    tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "NUMBERS", NUMBERS[:1])
    assign(_folder(tmp_path, "s/red"), registry)
    with pytest.raises(MachineError, match="no account left"):
        assign(_folder(tmp_path, "s/blue"), registry)


@pytest.mark.parametrize("text", ["0", "999", "-1", "", "2100000000", "2200000000", "+2100000001x", "\xb2"])
def test_no_file_makes_an_emulator_somebody_else(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(tmp_path, "s/red")
    (folder / "account").write_text(text)
    monkeypatch.setattr(accounts, "daemon", lambda: Account(4711, 4711))
    assert of_lab(folder) == Account(4711, 4711)


def test_without_root_a_lab_has_a_subordinate_id_where_others_may_pass(
    tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "privileged", lambda: False)
    monkeypatch.setattr(accounts, "registry_folder", lambda: registry)
    workspace, other = Workspace(tmp_path / "s", "red"), Workspace(tmp_path / "s", "blue")
    for each in (workspace, other):
        each.claim()
    assert workspace.account == accounts.freezer() == ourselves()
    monkeypatch.setattr(accounts, "closed_way", lambda *_: "/home/me has mode 0700")
    assert workspace.assign_account(tmp_path, kvm=False) == "/home/me has mode 0700"
    assert not registry.exists()
    monkeypatch.setattr(accounts, "closed_way", lambda *_: "")
    for each in (workspace, other):
        assert each.assign_account(tmp_path, kvm=False) == ""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)  # outside of the lab's user namespace
    assert workspace.account == ourselves()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(accounts, "_mapped", lambda _: True)
    assert workspace.account == Account(WITHIN[0], WITHIN[0], reader=0)
    assert other.account == Account(WITHIN[1], WITHIN[1], reader=0)


def test_a_device_that_is_closed_keeps_the_users_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "privileged", lambda: False)
    monkeypatch.setattr(accounts, "closed_way", lambda *_: "")
    monkeypatch.setattr(workspaces, "_KVM", tmp_path / "kvm")
    (tmp_path / "kvm").touch(mode=0o660)
    workspace = Workspace(tmp_path / "s", "red")
    workspace.claim()
    assert "not open to every account" in workspace.assign_account(tmp_path, kvm=True)


def test_the_way_to_a_folder_is_closed_by_any_folder_on_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for path in (tmp_path / "a/b", tmp_path / "a"):
        path.chmod(0o700)
        assert accounts.closed_way(tmp_path / "a/b/missing") == f"{path} has mode 0700"
        path.chmod(0o711)


def test_what_the_account_of_a_user_namespace_gets_we_can_read(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("")
    Account(os.geteuid(), 4711, reader=os.getegid()).give(tmp_path / "console.log")
    status = (tmp_path / "console.log").stat()
    assert (status.st_gid, status.st_mode & 0o777) == (os.getegid(), 0o640)


def test_a_daemon_has_its_own_account(
    tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "s", "red")
    workspace.claim()
    assign(workspace.folder, registry)
    assert workspace.account.uid in NUMBERS
    monkeypatch.setattr(accounts, "daemon", lambda: Account(4711, 4711))
    workspace.connect("qemu:///system")
    assert workspace.account == Account(4711, 4711)
    workspace.create()
    assert workspace.folder.stat().st_mode & 0o7777 == 0o711  # the daemon may have been told another account


@as_root
def test_only_a_labs_emulators_pass_through_its_folder(tmp_path: Path, registry: Path) -> None:
    workspace = Workspace(tmp_path / "s", "red")
    workspace.claim()
    assign(workspace.folder, registry)
    workspace.create()
    assert workspace.folder.stat().st_mode & 0o7777 == 0o700
    workspace.account.admit(workspace.folder)
    number = workspace.account.gid
    status = workspace.folder.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, number, 0o710)
    workspace.remove()
    assert not workspace.folder.exists()


@as_root
def test_what_is_given_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("of somebody else")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    Account(4711, 4712).give(tmp_path / "link")
    assert (tmp_path / "disk").stat().st_uid == 0
    assert ((tmp_path / "link").lstat().st_uid, (tmp_path / "link").lstat().st_gid) == (4711, 4712)


@as_root
def test_images_that_an_emulators_account_has_got_are_taken_back(tmp_path: Path) -> None:
    for name in ("disk.qcow2", "vmlinuz"):
        (tmp_path / name).write_text(name)
        os.chown(tmp_path / name, 4711, 4711)
    take_back(tmp_path)
    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {0}


def test_libvirt_is_told_the_account_and_gives_nothing_away_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(Hypervisor, "__init__", lambda _, uri, root: opened.append(uri))
    Hypervisor.embed(tmp_path / "v", Account(2_100_000_007, 2_100_000_007))
    told = (tmp_path / "v/etc/qemu.conf").read_text().splitlines()
    assert {'user = "+2100000007"', 'group = "+2100000007"', "dynamic_ownership = 0"} <= set(told)
    assert (tmp_path / "v/lib").stat().st_mode & 0o777 == 0o711
    assert opened == [f"qemu:///embed?root={tmp_path / 'v'}"]
