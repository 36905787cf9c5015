"""Where our folders are, whatever the environment says, and which paths cannot be one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from testbed.drivers.capabilities import doctor
from testbed.drivers.host import accounts, folders
from testbed.drivers.host.private_files import OWNER
from testbed.drivers.host.workspace import Workspace, cache_root, state_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.pki import Authority
from testbed.errors import MachineError, TestbedError, UsageError
from testbed.lab import admin_login
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read

LAB = resolve(read(Path(__file__).parents[4] / "topologies/one-node.yaml").spec)
VARIABLES = ("TESTBED_STATE_DIR", "TESTBED_CACHE_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home of an ordinary user."""
    monkeypatch.setattr(folders.os, "geteuid", lambda: 4321)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_an_ordinary_user_has_folders_at_home(user: Path) -> None:
    assert (state_root(), cache_root()) == (user / ".local/state/testbed", user / ".cache/testbed")


def test_xdg_moves_them(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(user / "s"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(user / "c"))
    assert (state_root(), cache_root()) == (user / "s/testbed", user / "c/testbed")
    monkeypatch.setenv("TESTBED_STATE_DIR", str(user / "mine"))
    assert state_root() == user / "mine"


def test_labs_of_before_xdg_was_known_are_not_lost(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = user / ".local/state/testbed"
    old.mkdir(parents=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(user / "s"))
    assert state_root() == user / "s/testbed"
    (old / ".testbed").touch()
    assert state_root() == old
    (user / "s/testbed").mkdir(parents=True)
    assert state_root() == user / "s/testbed"


@pytest.mark.parametrize("text", ["", "relative", "./x"])
def test_a_relative_path_of_xdg_is_ignored(text: str, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", text)
    assert state_root() == user / ".local/state/testbed"


@pytest.mark.skipif(os.geteuid() != 0, reason="looks at root's folders")
def test_root_keeps_its_folders_whatever_sudo_leaves_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/home/someone/.local/state")
    monkeypatch.delenv("HOME", raising=False)
    assert (state_root(), cache_root()) == (Path("/var/lib/testbed"), Path("/var/cache/testbed"))


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_without_home_the_account_database_says_it(
    value: str | None, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", value)
    entry = pwd.struct_passwd(("u", "x", 4321, 4321, "", str(user / "h"), "/bin/sh"))
    monkeypatch.setattr(folders.pwd, "getpwuid", lambda _: entry)
    assert state_root() == user / "h/.local/state/testbed"


def test_no_home_and_no_account_is_said_with_what_helps(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: object) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(folders.pwd, "getpwuid", unknown)
    for found in (state_root, cache_root):
        with pytest.raises(UsageError, match="no home folder") as caught:
            found()
        assert "4321" in caught.value.fact
        assert "TESTBED_STATE_DIR" in caught.value.remedy
    monkeypatch.setenv("TESTBED_STATE_DIR", "/srv/x")
    assert state_root() == Path("/srv/x")


def test_a_tilde_is_the_home(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (
        ("~", user),
        ("~/labs", user / "labs"),
        ("~root/labs", Path(pwd.getpwnam("root").pw_dir) / "labs"),
    ):
        monkeypatch.setenv("TESTBED_STATE_DIR", text)
        assert state_root() == expected
    monkeypatch.setenv("TESTBED_STATE_DIR", "~no-such-account/x")
    with pytest.raises(UsageError, match="TESTBED_STATE_DIR names no folder"):
        state_root()


def test_every_spelling_of_a_folder_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    for text in (
        "real",
        "./real/",
        "link",
        f"{tmp_path}//real",
        f"{tmp_path}/real/../real",
        f"{tmp_path}/link/.",
    ):
        monkeypatch.setenv("TESTBED_STATE_DIR", text)
        assert state_root() == tmp_path / "real"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives links away")
def test_a_link_of_somebody_else_leads_to_no_folder_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    os.chown(tmp_path / "link", 54321, 54321, follow_symlinks=False)
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "link"))
    with pytest.raises(MachineError, match="not safe to use"):
        state_root()


def test_a_running_lab_is_found_by_any_spelling_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert lab_namespaces._same(tmp_path / "link", tmp_path / "real")
    assert lab_namespaces._same(tmp_path / "gone", tmp_path / "gone")
    assert not lab_namespaces._same(tmp_path / "gone", tmp_path / "real")
    assert not lab_namespaces._same(tmp_path, tmp_path / "real")


def test_a_deleted_working_folder_matters_to_relative_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "s"))
    assert state_root() == tmp_path / "s"
    assert lab_namespaces._working_folder() == Path("/")
    monkeypatch.setenv("TESTBED_STATE_DIR", "s")
    with pytest.raises(UsageError, match="no folder to begin at") as caught:
        state_root()
    assert "deleted" in caught.value.fact


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\udcffb", "a${HOME}b", "a\u202eb", "a{{b}}"])
def test_a_path_that_programs_cannot_be_given_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_STATE_DIR", f"{tmp_path}/{name}")
    with pytest.raises(UsageError, match="cannot be a folder of ours"):
        state_root()


@pytest.mark.parametrize(
    "name",
    ["a b", "per%cent%h", 'quo"te', "apo'strophe", "com,ma", "back\\slash", "#hash", "ü", "=a", "do$llar"],
)
def test_openssh_reads_our_configuration_below_any_folder(name: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / name, LAB.name)
    workspace.create()
    workspace.pki.mkdir(mode=OWNER)
    admin_login.write_config(LAB, workspace, Authority(workspace.pki))
    if not shutil.which("ssh"):
        pytest.skip("no ssh here")
    argv = ["ssh", "-G", "-F", str(workspace.ssh_config), LAB.nodes[0].name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    options = dict(row.split(" ", 1) for row in done.stdout.splitlines() if " " in row)
    assert options["identityfile"].replace("%%", "%") == str(workspace.folder / "ssh/admin")
    assert options["userknownhostsfile"].strip('"').replace("%%", "%").replace("\\\\", "\\").replace(
        '\\"', '"'
    ) == str(workspace.folder / "ssh/known_hosts")


@pytest.mark.parametrize("folder", ["/run/x", "/run", "/dev/shm/x", "/proc/x", "/sys/x"])
def test_doctor_refuses_a_folder_that_a_lab_does_not_see(folder: str) -> None:
    found = doctor._place("labs", Path(folder))
    assert (found.ok, bool(found.remedy)) == (False, True)
    assert "of its own" in found.fact


@pytest.mark.parametrize("folder", ["/var/lib/testbed", "/home/dev/run", "/runner", "/srv/run/x"])
def test_doctor_permits_other_folders(folder: str) -> None:
    assert doctor._place("labs", Path(folder)).ok


def test_libvirt_gets_a_path_without_special_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, other = tmp_path / "a,b's" / "red", tmp_path / "blue"
    monkeypatch.setattr(folders, "LAB_LINK", tmp_path / "link")
    for folder in (lab, other):
        folder.mkdir(parents=True)
    assert folders.within_namespaces(lab / "v", lab) == lab / "v"  # of an earlier version: there is no link
    folders.LAB_LINK.symlink_to(lab)
    assert folders.within_namespaces(lab / "v", lab) == folders.LAB_LINK / "v"
    assert folders.within_namespaces(other / "v", other) == other / "v"


def _bound(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as opened:
        try:
            opened.connect(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
    return True


@pytest.mark.parametrize("size", [5, 20, 30, 48, 57, 58, 76, 77, 107, 200])
def test_a_path_is_too_long_where_the_kernel_takes_no_socket(size: int) -> None:
    root = Path("/" + "x" * (size - 1))
    most = folders.longest_lab(root)
    for lab in ("l", "l" * 11, "l" * 20):
        possible = _bound(folders._longest(root, lab).decode())
        assert possible is (len(lab) <= most)
        if possible:
            folders.require_room(root, lab, ["controller"])
        else:
            with pytest.raises(MachineError, match="too long") as caught:
                folders.require_room(root, lab, ["controller"])
            assert "107 are possible" in caught.value.fact
    assert doctor._room(root).ok is (most > 0)


def test_doctor_says_which_names_of_labs_are_left() -> None:
    assert "at most" not in doctor._room(Path("/var/lib/testbed")).fact
    assert "at most 16 characters" in doctor._room(Path("/" + "x" * 60)).fact


def test_doctor_sees_a_folder_that_we_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._writing(tmp_path / "a/b", baked=False).ok
    (tmp_path / "file").touch()
    assert "is not a folder" in doctor._writing(tmp_path / "file/b", baked=False).fact
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    found = doctor._writing(tmp_path / "a", baked=False)
    assert (found.ok, "not writable" in found.fact) == (False, True)
    assert doctor._writing(tmp_path / "a", baked=True).ok


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_doctor_sees_a_file_system_that_is_read_only_for_root_as_well(tmp_path: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
from testbed.drivers.capabilities import doctor
found = doctor._writing(Path({str(tmp_path)!r}) / 'x', baked=False)
print(found.ok, found.fact)
"""
    shell = f'mount -t tmpfs -o ro none "{tmp_path}" && exec "$0" -c "$1"'
    argv = ["unshare", "--mount", "sh", "-c", shell, shutil.which("python3") or "python3", script]
    argv[5] = __import__("sys").executable
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[4]
    )
    if done.returncode and "mount" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert (done.stdout.startswith("False "), "is read-only" in done.stdout) == (True, True), done.stderr


def test_the_registry_of_accounts_asks_for_no_home_where_there_is_none(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "privileged", lambda: False)
    assert accounts.registry_folder() == user / ".local/state/testbed-accounts"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(folders.pwd, "getpwuid", lambda _: pwd.struct_passwd(("u", "x", 1, 1, "", "", "")))
    with pytest.raises(TestbedError, match="no home folder"):
        accounts.registry_folder()


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o000])
def test_the_umask_closes_no_way_to_the_emulators_account(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        workspace = Workspace(tmp_path / "a/b/state", LAB.name)
        workspace.create()
        workspace.make(workspace.machine("node"))
    finally:
        os.umask(before)
    for folder in ("a", "a/b", "a/b/state"):
        assert (tmp_path / folder).stat().st_mode & 0o001
        assert not (tmp_path / folder).stat().st_mode & 0o022
