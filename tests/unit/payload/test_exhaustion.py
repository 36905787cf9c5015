"""Programs that use up what limits bound, against this test's own processes and files (DOS-02 to DOS-05)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.payload.attacks import confinement, cpu_shares, disk_reads, exhaustion
from tests.filtered_process import KILLED, filtered

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes on other accounts and traces a process")
ACCOUNT, _EXECVE = 64199, 59
_WORKER = f"""
import os
os.setgroups([])
os.setresgid(*[{ACCOUNT}] * 3)
os.setresuid(*[{ACCOUNT}] * 3)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], Any]]:
    """Attack in the place of a process that stands for a worker; this machine may have no AppArmor."""
    with filtered(_EXECVE, KILLED, _WORKER) as pid:
        (tmp_path / "red.web.pid").write_text(f"{pid}")
        (tmp_path / "driver.pid").write_text("1")
        monkeypatch.setattr(exhaustion, "_RUN", str(tmp_path))
        monkeypatch.setattr(confinement, "put_on_profile", lambda _: None)
        monkeypatch.setattr(confinement, "join_group", lambda _: None)
        yield lambda kind, most: exhaustion.collect({"domain": "red.web", "kind": kind, "most": most})


@AS_ROOT
@pytest.mark.parametrize(("kind", "most", "reached"), [("memory", 2**24, 2**24), ("threads", 9, 9)])
def test_an_attack_without_limit_stops_by_itself(
    run: Callable[[str, int], Any], kind: str, most: int, reached: int
) -> None:
    answer = run(kind, most)
    assert (answer["reached"], answer["status"]) == (reached, 0)
    assert answer["worn"]["accounts"] == [ACCOUNT] * 4
    assert answer["before"]["workers"] == answer["after"]["workers"]
    assert answer["before"]["killed"] == answer["after"]["killed"]


@AS_ROOT
def test_a_guest_without_worker_is_not_attacked(run: Callable[[str, int], Any], tmp_path: Path) -> None:
    (tmp_path / "red.web.pid").unlink()
    assert run("threads", 9) == {}


def test_logs_are_written_to_the_pipes_of_a_worker() -> None:
    reader, writer = os.pipe()
    answers, answer = os.pipe()
    found: list[int] = []

    def read() -> None:
        while text := os.read(reader, 2**16):
            found.append(len(text))

    thread = threading.Thread(target=read)
    thread.start()
    pipes = exhaustion._pipes(os.getpid())
    try:
        same = [pipe for pipe in pipes if os.fstat(pipe).st_ino == os.fstat(writer).st_ino]
        exhaustion._flood_logs(answer, 3 * len(exhaustion._TEXT), same[:1])
    finally:
        for descriptor in (*pipes, writer, answer):
            os.close(descriptor)
        thread.join()
    assert sum(found) == 3 * len(exhaustion._TEXT)
    assert os.read(answers, 9) == b"..."
    os.close(answers)
    os.close(reader)


def test_reads_end_at_a_file_or_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, over = tmp_path / "disk", tmp_path / "over"
    disk.write_bytes(bytes(2**16))
    over.write_text("left from another attack")
    monkeypatch.setattr(disk_reads, "DISK", str(disk))
    seen: list[int] = []

    def preadv(*arguments: Any) -> int:
        seen.append(arguments[2])
        if len(seen) == 5:
            over.touch()
        return 4096

    monkeypatch.setattr(os, "preadv", preadv)
    disk_reads.read(4096, 60.0, str(over))
    assert len(seen) == 5
    assert {place % 4096 for place in seen} == {0}
    over.unlink()
    disk_reads.read(4096, 0.01, str(over))
    assert len(seen) > 5


def test_cpu_time_is_that_of_control_groups_and_of_this_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = confinement.text("/proc/self/cgroup").strip().rpartition(":")[2]
    outer = tmp_path / "/".join(group.split("/")[1:3])
    (outer / "libvirt").mkdir(parents=True)
    (outer / "cpu.stat").write_text("usage_usec 70\nnr_throttled 0\n")
    (outer / "libvirt/cpu.stat").write_text("usage_usec 60\nnr_throttled 4\n")
    (tmp_path / "red.web.pid").write_text(f"{os.getpid()}")
    monkeypatch.setattr(cpu_shares, "_RUN", str(tmp_path))
    monkeypatch.setattr(cpu_shares, "_ROOT", str(tmp_path))
    assert cpu_shares._stat(str(outer)) == {"usage_usec": 70, "nr_throttled": 4}
    found: Any = cpu_shares.collect({"seconds": 0.2, "spin": True})
    assert found["groups"] == {"red.web": {"usage_usec": 0, "nr_throttled": 0}}
    assert found["elapsed"] >= 200_000
    assert 0 < found["own"] <= found["elapsed"] * found["processors"] * 1.5
    assert cpu_shares.collect({"seconds": 0.01, "spin": False})["own"] == 0
