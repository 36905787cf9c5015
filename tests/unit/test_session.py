"""The command session: the real far end over pipes, and far ends that misbehave."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from testbed.drivers.session import LIMIT, PROGRAM, Session


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


@pytest.fixture
def session() -> Iterator[Session]:
    argv = [sys.executable, "-ISuc", PROGRAM]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Session(lambda data: _write(process, data), process.stdout)
        process.kill()


def test_a_command_gives_back_status_and_both_streams(session: Session) -> None:
    done = session.run("cat; echo no >&2; exit 7", stdin=b"\xffyes", timeout=10)
    assert (done.status, done.stdout, done.stderr) == (7, b"\xffyes", b"no\n")
    assert session.run("kill -9 $$", stdin=b"", timeout=10).status == 137


def test_commands_run_side_by_side(session: Session) -> None:
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda n: session.run(f"sleep 0.{4 - n}; echo {n}", stdin=b"", timeout=10).text, range(4)))
    assert texts == ["0\n", "1\n", "2\n", "3\n"]


def test_a_command_that_does_not_end_is_killed_with_its_children(session: Session) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="no end within 1 s"):
        session.run("sleep 321.5 & wait", stdin=b"", timeout=1)
    assert time.monotonic() - started < 10
    assert session.run("pgrep -fx 'sleep 321.5' || echo gone", stdin=b"", timeout=10).text == "gone\n"


def test_output_is_cut_and_unread_input_is_no_error(session: Session) -> None:
    done = session.run(f"head -c {LIMIT + 5} /dev/zero", stdin=b"x" * 10**6, timeout=60)
    assert (done.status, len(done.stdout)) == (0, LIMIT)


@pytest.mark.parametrize("line", [b"", b"garbage\n", b"[1]\n", b"[" * 100_000 + b"\n", b'{"id": {}}\n'])
def test_a_far_end_that_talks_nonsense_ends_the_session(line: bytes) -> None:
    session = Session(lambda _: None, io.BytesIO(line))
    with pytest.raises(EOFError):
        session.run("true", stdin=b"", timeout=5)
    assert not session.alive


@pytest.mark.parametrize(
    "answer", [b'{"id": 0}\n', b'{"id": 0, "status": "x", "out": "", "err": ""}\n', b'{"id": 0, "status": 0, "out": 1}\n']
)
def test_an_answer_that_makes_no_sense_is_no_result(answer: bytes) -> None:
    class Slow(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            time.sleep(0.1)
            return super().readline(size)

    session = Session(lambda _: None, Slow(answer))
    with pytest.raises(EOFError):
        session.run("true", stdin=b"", timeout=5)


def test_a_far_end_that_is_gone_is_told_at_once(session: Session) -> None:
    with pytest.raises(EOFError):
        session.run("kill -9 $PPID", stdin=b"", timeout=30)
    with pytest.raises(EOFError, match="has ended"):
        session.run("true", stdin=b"", timeout=30)
