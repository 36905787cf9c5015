"""The programs that record a host and give it back, on a tree of files of this machine."""

from __future__ import annotations

import fcntl
import io
import json
import os
import tarfile
from dataclasses import asdict
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from testbed.adoption import remote
from testbed.adoption.compare import Orders, Step, differences, orders
from testbed.adoption.state import HostState
from testbed.errors import InstrumentError
from testbed.payload.adoption import host_restore, host_state


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree that stands for /etc; this machine's units, settings and rules are left out."""
    monkeypatch.setattr(host_state, "_units", dict)
    monkeypatch.setattr(host_state, "_sysctls", dict)
    monkeypatch.setattr(host_state, "_rules", str)
    monkeypatch.setattr(host_restore, "_FAILED", [])
    monkeypatch.setattr(host_restore, "_try", lambda *_, **__: None)
    monkeypatch.setattr(host_restore, "_unload", lambda _: None)
    folder = tmp_path / "etc"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "plain").write_text("one\n")
    (folder / "deep/er/secret").write_text("two\n")
    (folder / "deep/er/secret").chmod(0o4600)
    (folder / "deep/link").symlink_to("../plain")
    (folder / "empty").touch()
    Path(os.fsdecode(bytes(folder) + b"/odd \xff\n")).write_text("three\n")
    return folder


def taken(tree: Path, *, contents: bool = True) -> io.BytesIO:
    output = io.BytesIO()
    asked = {"copied": [str(tree)], "noted": [], "listed": [], "left": [], "contents": ["yes"] * contents}
    host_state.record(asked, output)
    output.seek(0)
    return output


def state(archive: io.BytesIO) -> HostState:
    archive.seek(0)
    return remote.state_of("here", archive)


def packed(contents: dict[str, bytes]) -> io.BytesIO:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w|") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    output.seek(0)
    return output


def give_back(archive: io.BytesIO, work: Orders) -> None:
    archive.seek(0)
    digests = {str(item["digest"]) for item in work.write if item["digest"]}
    host_restore.restore(asdict(work), packed(remote.contents_of(archive, digests)))


def test_files_are_given_back_as_they_were(tree: Path) -> None:
    archive = taken(tree)
    before = state(archive)
    (tree / "plain").write_text("changed\n")
    (tree / "deep/er/secret").unlink()
    (tree / "deep/er").rmdir()
    (tree / "deep/er").write_text("a file where a folder was")
    (tree / "deep/link").unlink()
    (tree / "deep/link").mkdir()
    (tree / "empty").chmod(0o666)
    (tree / "new/below").mkdir(parents=True)
    (tree / "new/below/file").touch()
    (tree / "hanging").symlink_to("/nowhere")
    Path(os.fsdecode(bytes(tree) + b"/odd \xff\n")).unlink()
    now = state(taken(tree, contents=False))
    found = differences(before, now)
    assert {item.step for item in found} == {Step.WRITE, Step.DELETE}
    assert len(found) == 10
    give_back(archive, orders(before, now, found, []))
    assert host_restore._FAILED == []
    after = state(taken(tree, contents=False))
    assert differences(before, after) == []
    assert (tree / "deep/er/secret").read_text() == "two\n"
    assert (tree / "deep/er/secret").stat().st_mode & 0o7777 == 0o4600


def test_a_look_has_no_copies_and_the_same_state(tree: Path) -> None:
    whole, look = taken(tree), taken(tree, contents=False)
    assert differences(state(whole), state(look)) == []
    look.seek(0)
    with tarfile.open(fileobj=look, mode="r:gz") as archive:
        assert archive.getnames() == ["state.json"]


def test_what_cannot_be_given_back_is_named_and_leaves_the_rest(tree: Path) -> None:
    archive = taken(tree)
    before = state(archive)
    (tree / "deep/link").unlink()
    (tree / "deep/link").mkdir()
    (tree / "deep/link/kept").touch()
    (tree / "plain").write_text("changed\n")
    work = orders(before, state(archive), [], [])
    work.write = [
        {"path": path, "whole": True, **asdict(before.files[path])}
        for path in (f"{tree}/deep/link", f"{tree}/plain")
    ]
    give_back(archive, work)
    assert len(host_restore._FAILED) == 1
    assert "deep/link" in host_restore._FAILED[0]
    assert (tree / "plain").read_text() == "one\n"


def test_a_changed_content_is_not_written(tree: Path) -> None:
    with pytest.raises(OSError, match="has changed on its way"):
        host_restore.restore(asdict(Orders()), packed({"0" * 64: b"another"}))


@pytest.mark.parametrize("size", [host_state._FILE + 1])
def test_a_file_that_is_too_large_ends_the_record(tree: Path, size: int) -> None:
    os.truncate(tree / "plain", size)
    with pytest.raises(ValueError, match="octets"):
        taken(tree)


def test_a_damaged_record_is_refused(tree: Path) -> None:
    whole = taken(tree).getvalue()
    for damaged in (whole[:-200], b"", b"no archive", whole[:100] + bytes(50) + whole[150:]):
        with pytest.raises(InstrumentError, match="no record of a host"):
            remote.state_of("here", io.BytesIO(damaged))


def _apt(folder: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> Path:
    """Put programs into PATH that write their words down and print what apt-get would."""
    calls = folder / "calls"
    for name, output in (("apt-get", told), ("dpkg", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\nprintf "{output}"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return calls


def test_packages_that_were_there_are_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _apt(tmp_path, monkeypatch, "Purg strongswan [6]\\nPurg sudo [1]\\n")
    with pytest.raises(host_restore.PackageError, match="remove as well: sudo"):
        host_restore._packages(["strongswan:amd64"], [])
    assert "--simulate" in calls.read_text().splitlines()[-1]


def test_added_packages_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _apt(tmp_path, monkeypatch, "Purg strongswan [6]\\n")
    host_restore._packages(["strongswan:amd64"], [])
    assert calls.read_text().splitlines()[-1].endswith("purge strongswan:amd64")


def test_files_stay_while_packages_cannot_be_removed(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _apt(tmp_path, monkeypatch, "Purg sudo [1]\\n")
    monkeypatch.setattr(host_restore, "_LOCK", str(tmp_path / "lock"))
    work: dict[str, Any] = asdict(Orders(purge=["strongswan"], delete=[f"{tree}/plain"]))
    stream = io.BytesIO(json.dumps(work).encode() + b"\n" + packed({}).getvalue())
    assert host_restore.main(stream) == 1
    assert (tree / "plain").exists()
    assert "stopped: apt-get would remove as well: sudo" in capfd.readouterr().err


def test_a_call_waits_for_an_earlier_one(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setattr(host_restore, "_LOCK", str(path))
    earlier = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(earlier, fcntl.LOCK_EX)
    with pytest.raises(TimeoutError, match="still runs"):
        host_restore._lock(0.0)
    ending = Timer(0.3, lambda: (path.unlink(), os.close(earlier)))
    ending.start()
    stream = io.BytesIO(
        json.dumps(asdict(Orders(delete=[f"{tree}/plain"]))).encode() + b"\n" + packed({}).getvalue()
    )
    assert host_restore.main(stream) == 0
    ending.join()
    assert not (tree / "plain").exists()
    assert not path.exists()
