"""Records of hosts on disk."""

from __future__ import annotations

import io
import os
import stat
import time
from pathlib import Path

import pytest

from testbed.adoption.store import Record, recorded
from testbed.drivers.host.workspace import labs
from testbed.errors import LockedError, ProvisioningError, UsageError


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path, "root@kvm1.example")


@pytest.mark.parametrize(
    "name", ["", "-oProxyCommand=x", "../kvm1", ".hidden", "a/b", "a b", "x" * 200, "a\n"]
)
def test_a_name_becomes_no_other_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        Record(tmp_path, name)


def test_a_record_is_private_and_listed(record: Record) -> None:
    with record.locked():
        record.keep(io.BytesIO(b"x" * 3_000_000))
    for path in (record.folder, *record.folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert record.archive.stat().st_size == 3_000_000
    assert recorded(record.root) == [record]
    assert labs(record.root) == []


def test_a_record_is_never_overwritten(record: Record) -> None:
    with pytest.raises(UsageError, match="there is no record"):
        record.require()
    with record.locked():
        record.require_none()
        record.keep(io.BytesIO(b"first"))
    record.require()
    with pytest.raises(UsageError, match="has a record already"):
        record.require_none()


def test_a_killed_record_is_none(record: Record) -> None:
    child = os.fork()
    if child == 0:

        class Endless(io.BytesIO):
            def read(self, _: int | None = -1, /) -> bytes:
                return b"x" * 100

        with record.locked():
            record.keep(Endless())
        os._exit(0)
    end = time.monotonic() + 10
    while not list(record.folder.glob(".record*.partial")):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert recorded(record.root) == []
    with record.locked():
        record.require_none()
        record.keep(io.BytesIO(b"second"))
    assert record.archive.read_bytes() == b"second"


def test_two_processes_do_not_work_with_one_record(record: Record) -> None:
    with record.locked(), pytest.raises(LockedError), Record(record.root, record.host).locked():
        pass


def test_a_restore_that_has_begun_is_known(record: Record) -> None:
    with record.locked():
        assert record.settled() is None
        record.settle({"ssh.service": "2"})
        assert record.settled() == {"ssh.service": "2"}
        record.journal.write_text("{")
        with pytest.raises(ProvisioningError):
            record.settled()


def test_a_removed_record_leaves_nothing(record: Record) -> None:
    with record.locked():
        record.keep(io.BytesIO(b"x"))
        record.remove()
    assert recorded(record.root) == []
    assert not record.folder.exists()
