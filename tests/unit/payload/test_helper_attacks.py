"""The program that attacks in the place of helpers, against this test's own processes (PRC-06)."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.payload.attacks import confinement, helper_attacks
from testbed.payload.attacks.attempts import memory, outcome
from tests.filtered_process import REFUSED, filtered

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="traces a process, and gives capabilities up")
_MKDIR = 83


@pytest.fixture
def refusing() -> Iterator[int]:
    with filtered(_MKDIR, REFUSED) as pid:
        yield pid


def _request(folder: Path, **changed: Any) -> dict[str, Any]:
    empty = {"read": [], "write": [], "folders": [], "sockets": [], "programs to start": []}
    (folder / "log").touch()
    return {"programs": [], "workers": {}, "own": str(folder / "log"), **empty, **changed}


def test_outcomes_tell_what_was_permitted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        request = _request(
            tmp_path,
            read=[str(tmp_path / "log"), str(tmp_path / "none")],
            folders=[str(tmp_path)],
            sockets=[str(tmp_path / "socket"), str(tmp_path / "none")],
            **{"programs to start": ["/usr/bin/true", str(tmp_path / "none")]},
        )
        attempts = helper_attacks._attempts(request, {"guest": (os.getpid(), memory(os.getpid()))})
        server.settimeout(0)
        found = {
            name: outcome(rest[0], *rest[1])
            for name, *rest in attempts
            if "module" not in name and "mount" not in name
        }
        with pytest.raises(BlockingIOError):
            server.accept()  # the question has made no connection
    assert found["write its own log"] == found[f"read {tmp_path}/log"] == found[f"list {tmp_path}"] == "done"
    assert found[f"connect to {tmp_path}/socket"] == found["start /usr/bin/true"] == "done"
    none = f"{tmp_path}/none"
    assert found[f"read {none}"] == found[f"connect to {none}"] == found[f"start {none}"] == "ENOENT"
    assert found["copy the memory of guest"] == found["signal guest"] == "done"


def test_an_expected_error_shows_that_the_call_was_permitted() -> None:
    for number, expected in ((errno.EPERM, "EPERM"), (errno.ENODEV, "done")):
        helper_attacks.ctypes.set_errno(number)
        assert outcome(helper_attacks._expect, errno.ENODEV, -1) == expected


def test_helpers_are_known_by_inode_and_by_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "renamed"
    os.link(shutil.copy("/usr/bin/sleep", tmp_path / "sleep"), copy)
    reader, writer = os.pipe()
    known = subprocess.Popen([copy, "60"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    worker = subprocess.Popen(["/usr/bin/sleep", "60"], stdout=writer)
    sharer = subprocess.Popen(["/usr/bin/sleep", "60"], stdin=reader)
    os.close(reader)
    os.close(writer)
    monkeypatch.setattr(helper_attacks, "_processes", lambda: [known.pid, worker.pid, sharer.pid, 2**30])
    try:
        found = helper_attacks._helpers([str(tmp_path / "sleep"), "/none"], {"red.web": worker.pid})
        assert found[known.pid] == str(tmp_path / "sleep")
        assert found[sharer.pid] == os.path.realpath("/usr/bin/sleep")
        assert worker.pid not in found
        assert helper_attacks._served(sharer.pid, {"red.web": worker.pid}) == {"red.web"}
    finally:
        for process in (known, worker, sharer):
            process.kill()
            process.wait()


def test_a_child_that_breaks_off_has_no_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(helper_attacks, "_wear", broken)
    assert helper_attacks._tried([]) == {}


@root_only
def test_a_childs_filters_capabilities_and_flags_are_those_of_the_process(
    refusing: int, tmp_path: Path
) -> None:
    filters = confinement.filters(refusing)
    assert [len(text) for text in filters] == [32]
    attempts: Any = [("make", os.mkdir, (tmp_path / "made",))]
    bare = helper_attacks._tried(attempts, refusing)
    worn = helper_attacks._tried(attempts, refusing, filters=filters)
    assert bare["outcomes"]["make"] == "done"  # type: ignore[index]
    assert worn["outcomes"]["make"] == "EPERM"  # type: ignore[index]
    described = helper_attacks._described(refusing)
    assert {*worn["worn"]["threads"]} == {*described["threads"]}  # type: ignore[index,misc]
    assert worn["worn"]["mounts"] == described["mounts"]  # type: ignore[index]


@root_only
def test_capabilities_are_given_up() -> None:
    def limited() -> None:
        confinement.set_capabilities(0, 0, 0)
        os.setgroups([])

    assert outcome(helper_attacks._forked, lambda: os.setgroups([])) == "done"
    assert outcome(helper_attacks._forked, limited) == "EPERM"


@root_only
def test_a_process_without_filters_has_none() -> None:
    process = subprocess.Popen(["/usr/bin/sleep", "60"])
    try:
        assert confinement.filters(process.pid) == ()
    finally:
        process.kill()
        process.wait()
