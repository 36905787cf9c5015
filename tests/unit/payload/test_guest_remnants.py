"""The program that finds remnants of a guest, against this machine (RES-02)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.payload.residues import guest_remnants

NAME = "red.departing.5e1f"
FREE = 64163  # an account that this machine does not use


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(guest_remnants, "_TREES", (str(tmp_path),))
    return tmp_path


def files(account: int = FREE, records: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return sorted(guest_remnants._files([NAME.encode()], account, records))


def test_a_file_is_found_by_its_name_its_target_and_its_content(tree: Path) -> None:
    (tree / "other").write_text("x")
    assert files() == []
    (tree / "folder").mkdir()
    (tree / f"folder/{NAME}.log").touch()
    (tree / "link").symlink_to(f"/nowhere/{NAME}")
    (tree / "profile").write_bytes(b"\xff owner of " + NAME.encode())
    assert files() == [
        ("content", f"{tree}/profile"),
        ("file", f"{tree}/folder/{NAME}.log"),
        ("file", f"{tree}/link"),
    ]


def test_a_record_is_not_read(tree: Path) -> None:
    (tree / "audit").mkdir()
    (tree / f"audit/{NAME}").write_text(NAME)
    assert files(records=(f"{tree}/audit/",)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another account")
def test_a_file_is_found_by_its_owner(tree: Path) -> None:
    (tree / "core").touch()
    os.chown(tree / "core", FREE, 0)
    assert files() == [("file", f"{tree}/core of its account")]


def test_a_process_is_found_by_its_command_line_and_by_its_account() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", NAME], stdin=subprocess.PIPE) as process:
        found = list(guest_remnants._processes([NAME.encode()], FREE))
        process.communicate(b"\n")
    assert [kind for kind, text in found if NAME in text] == ["process"]
    assert list(guest_remnants._processes([NAME.encode()], FREE)) == []
    assert list(guest_remnants._processes([b"-"], FREE))


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its account")
def test_a_process_is_found_by_an_account_that_it_can_return_to() -> None:
    program = f"import os; os.setresuid(0, 0, {FREE}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        found = list(guest_remnants._processes([], FREE))
        process.communicate(b"\n")
    assert len(found) == 1


def test_an_interface_is_found_by_its_name_and_by_its_address() -> None:
    assert list(guest_remnants._interfaces([b"lo "])) == [("interface", "lo 00:00:00:00:00:00")]
    assert list(guest_remnants._interfaces([NAME.encode()])) == []


def test_lines_of_commands_are_found_and_a_failed_command_is_no_answer() -> None:
    listing = {"switch": ["printf", f"one\ntap {NAME}\n"]}
    assert list(guest_remnants._printed([NAME.encode()], listing)) == [("switch", f"tap {NAME}")]
    with pytest.raises(subprocess.CalledProcessError):
        list(guest_remnants._printed([NAME.encode()], {"switch": ["false"]}))


def test_keys_and_shared_memory_of_an_account_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "       key      shmid perms  size  cpid  lpid nattch   uid   gid  cuid  cgid"
    monkeypatch.setattr(
        guest_remnants,
        "_read",
        lambda path: (
            f"{head}\n  0  1  1600  4096  7  7  1  {FREE}  0  0  0\n".encode()
            if path.endswith("shm")
            else f" {FREE}:     1 1/1 1/200 9/20000\n    0:    40 39/39 27/1000000 529/25000000\n".encode()
            if path.endswith("key-users")
            else b""
        ),
    )
    assert [kind for kind, _ in guest_remnants._kernel_objects(FREE)] == ["shm", "key"]
    assert [kind for kind, _ in guest_remnants._kernel_objects(1)] == []
