"""The program that attacks in the place of workers, against this test's own processes (PRC-01, STO-01)."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.payload.attacks import attempts, confinement, worker_attacks
from tests.filtered_process import KILLED, filtered

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes on other accounts and traces a process")
ACCOUNT = 64199
_EXECVE = 59
_ACCOUNT = f"""
os.setgroups([{ACCOUNT}, 104])
os.setresgid(*[{ACCOUNT}] * 3)
os.setresuid(*[{ACCOUNT}] * 3)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Start a process in the place of the worker of red.web; this machine may have no AppArmor."""
    with filtered(_EXECVE, KILLED, _ACCOUNT) as pid:
        (tmp_path / "red.web.pid").write_text(f"{pid}")
        monkeypatch.setattr(worker_attacks, "_RUN", str(tmp_path))
        monkeypatch.setattr(confinement, "put_on_profile", lambda _: None)
        monkeypatch.setattr(confinement, "join_group", lambda _: None)
        yield pid


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a folder that every account may enter, for the files of a test."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def tried(account: int | None, *attempts: tuple[str, object]) -> dict[str, Any]:
    (answer,) = worker_attacks.collect(
        {"jobs": [["red.web", account, [[verb, str(target)] for verb, target in attempts]]]}
    )
    found: Any = answer
    return dict(found)


def test_a_child_wears_account_groups_capabilities_and_filter_of_the_worker(worker: int) -> None:
    answer = tried(None, ("read", "/dev/null"))
    assert answer["outcomes"] == ["done"]
    assert answer["worker"]["accounts"] == [ACCOUNT] * 4
    for layer in ("accounts", "groups", "others", "bound", "filters", "namespaces"):
        assert answer["worn"][layer] == answer["worker"][layer], layer
    assert answer["worn"]["filters"] == [2, 1]
    assert answer["worn"]["capabilities"] == [0] * 5


def test_a_child_with_the_profile_alone_has_an_account_and_nothing_else(worker: int) -> None:
    worn = tried(0, ("read", "/dev/null"))["worn"]
    assert (worn["accounts"], worn["others"], worn["capabilities"]) == ([0] * 4, [], [0] * 5)
    assert (worn["bound"], worn["filters"]) == (0, [0, 0])


def test_attempts_end_as_the_account_may(worker: int, place: Path) -> None:
    own, foreign, folder = place / "own", place / "foreign", place / "folder"
    folder.mkdir(mode=0o700)
    (folder / "entry").touch()
    for path in (own, foreign):
        path.write_text("x")
        path.chmod(0o600)
    os.chown(own, ACCOUNT, ACCOUNT)
    attempts = [(verb, path) for path in (own, foreign) for verb in ("read", "write")]
    attempts += [("list", place), ("list", folder), ("signal", worker), ("signal", os.getpid())]  # type: ignore[list-item]
    expected = ["done", "done", "EACCES", "EACCES", "done", "EACCES", "done", "EPERM"]
    assert tried(None, *attempts)["outcomes"] == expected
    # Without capabilities, root's number opens what belongs to root, and not the worker's file.
    assert tried(0, *attempts)["outcomes"][:6] == ["EACCES", "EACCES", "done", "done", "done", "done"]
    assert own.read_text() == foreign.read_text() == "x"


def test_nothing_is_created_and_an_empty_folder_is_not_listed(worker: int, place: Path) -> None:
    place.chmod(0o777)
    assert tried(None, ("write", place / "new"), ("list", place))["outcomes"] == ["ENOENT", "ENOENT"]
    assert list(place.iterdir()) == []


def test_a_socket_may_be_connected_to_if_it_may_be_written(worker: int, place: Path) -> None:
    path = place / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0o600)
        assert tried(None, ("connect", path))["outcomes"] == ["EACCES"]
        path.chmod(0o666)
        assert tried(None, ("connect", path))["outcomes"] == ["done"]


def test_a_program_that_a_filter_refuses_ends_its_own_child_only(worker: int) -> None:
    attempts = (("read", "/dev/null"), ("execute", "/usr/bin/true"), ("read", "/dev/zero"))
    assert tried(None, *attempts)["outcomes"] == ["done", "SIGSYS", "done"]
    assert tried(ACCOUNT, *attempts)["outcomes"] == ["done", "done", "done"]
    assert tried(ACCOUNT, ("execute", "/nowhere"))["outcomes"] == ["ENOENT"]


def test_a_program_that_does_not_end_is_ended(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_PATIENCE", 0.3)
    assert tried(ACCOUNT, ("execute", "/usr/bin/yes"))["outcomes"] == ["done"]
    found = subprocess.run(["pgrep", "-x", "-U", f"{ACCOUNT}", "yes"], capture_output=True, check=False)
    assert found.stdout == b""


def test_a_guest_without_a_worker_has_an_empty_answer(worker: int, tmp_path: Path) -> None:
    (tmp_path / "red.web.pid").write_text("4194305")
    assert tried(None, ("read", "/dev/null")) == {}
    (tmp_path / "red.web.pid").unlink()
    assert tried(None, ("read", "/dev/null")) == {}


def test_a_child_that_cannot_wear_a_layer_breaks_off(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise PermissionError

    monkeypatch.setattr(confinement, "put_on_profile", refuse)
    answer = tried(None, ("read", "/dev/null"))
    assert (answer["worn"], answer["outcomes"]) == ({}, [])


def test_attempts_keep_their_order_around_programs() -> None:
    attempts = [("read", "a"), ("read", "b"), ("execute", "c"), ("execute", "d"), ("read", "a")]
    assert worker_attacks._batches(attempts) == [attempts[:2], attempts[2:3], attempts[3:4], attempts[4:]]
