"""The programs that try sockets and memory in the place of others, against this test's own processes."""

from __future__ import annotations

import errno
import os
import pwd
import socket
from functools import partial
from pathlib import Path

import pytest

from testbed.payload.attacks import account_attacks, worker_network
from testbed.payload.attacks.attempts import become, copy_memory, memory, outcome, tried


@pytest.fixture
def listener() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_sending_is_told_by_its_outcome(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    attempts = worker_network._sendings(
        [("one", "tcp", "127.0.0.1", port), ("other", "udp", "127.0.0.1", 9), ("none", "tcp", "127.0.0.1", 1)]
    )
    assert tried(attempts) == {
        "send tcp to one": "done", "send udp to other": "done", "send tcp to none": "ECONNREFUSED",
    }  # fmt: skip


def test_opening_is_told_by_its_outcome() -> None:
    attempts = worker_network._openings([("TCP", 2, 1, 0), ("nothing", 2, 99, 0)])
    found = tried(attempts)
    assert found["open TCP"] == "done"
    assert found["open nothing"] != "done"


def test_a_child_that_breaks_off_has_no_outcomes() -> None:
    def broken() -> None:
        raise RuntimeError

    assert tried(worker_network._openings([("TCP", 2, 1, 0)]), broken) == {}


def test_memory_of_an_own_process_is_reached(tmp_path: Path) -> None:
    address = memory(os.getpid())
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        request = {
            "hypervisor": str(tmp_path / "none"),
            "devices": [],
            "files": [str(tmp_path / "file")],
            "sockets": [str(tmp_path / "socket"), str(tmp_path / "file")],
        }
        attempts = account_attacks._attempts(request, {"guest": (os.getpid(), address)})
        found = {name: outcome(attempt, *given) for name, attempt, given in attempts}
    assert found["use the hypervisor"] == "ENOENT"
    assert found[f"read {tmp_path}/file"] == found[f"write {tmp_path}/file"] == "done"
    assert found[f"connect to {tmp_path}/socket"] == "done"
    assert found[f"connect to {tmp_path}/file"] == "ENOTSOCK"
    assert found["read the memory of guest"] == found["copy the memory of guest"] == "done"
    assert found["trace guest"] in ("EPERM", "EACCES")  # no process traces itself
    assert found["take a descriptor of guest"] == "done"


def test_an_address_that_is_not_mapped_is_an_error() -> None:
    assert outcome(copy_memory, os.getpid(), 1) == "EFAULT"


def test_idle_workers_in_the_same_groups_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"other": [9]}
    monkeypatch.setattr(os, "getgrouplist", lambda name, own: [own, *groups.get(name, [5])])
    entries = [
        pwd.struct_passwd((name, "x", number, number, "", "/", "/bin/sh"))
        for name, number in (
            ("root", 0),
            ("busy", 100),
            ("first", 101),
            ("alike", 102),
            ("other", 103),
            ("x", 104),
        )
    ]
    found = account_attacks._chosen(entries, (100, 103), {100})
    assert [entry.pw_name for entry in found] == ["root", "busy", "first", "other", "x"]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another account")
def test_another_account_does_not_reach_memory_of_root() -> None:
    address = memory(os.getpid())
    attempts = [("copy", copy_memory, (os.getpid(), address))]
    nobody = pwd.getpwnam("nobody")
    denied = tried(attempts, partial(become, nobody))  # type: ignore[arg-type]
    assert denied == {"copy": errno.errorcode[errno.EPERM]}
    allowed = tried(attempts, partial(become, pwd.getpwuid(0)))  # type: ignore[arg-type]
    assert allowed == {"copy": "done"}
