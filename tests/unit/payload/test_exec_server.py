"""The command session: the real far end over pipes, and far ends that misbehave."""

from __future__ import annotations

import hashlib
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testbed.drivers.ssh.command_session import BEGIN, LIMIT, PROGRAM, Session, SessionStream
from testbed.payload import exec_server


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


@pytest.fixture
def session() -> Iterator[Session]:
    argv = [sys.executable, "-ISuc", BEGIN]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        _write(process, PROGRAM)
        yield Session(lambda data: _write(process, data), process.stdout)
        process.kill()


def test_a_command_gives_back_status_and_both_streams(session: Session) -> None:
    done = session.run("cat; echo no >&2; exit 7", stdin=b"\xffyes", timeout=10)
    assert (done.status, done.stdout, done.stderr) == (7, b"\xffyes", b"no\n")
    assert session.run("kill -9 $$", stdin=b"", timeout=10).status == 137


def test_commands_run_side_by_side(session: Session) -> None:
    with ThreadPoolExecutor(4) as pool:
        texts = list(
            pool.map(
                lambda n: session.run(f"sleep 0.{4 - n}; echo {n}", stdin=b"", timeout=10).text, range(4)
            )
        )
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


@pytest.mark.parametrize(
    "line",
    [b"", b"garbage\n", b"done\n", b"done x 0 0 0\n", b"x" * 100_000 + b"\n", b"data 7 1\nx", b"late 7\n"],
)
def test_a_far_end_that_talks_nonsense_ends_the_session(line: bytes) -> None:
    session = Session(lambda _: None, io.BytesIO(line))
    with pytest.raises(EOFError):
        session.run("true", stdin=b"", timeout=5)
    assert not session.alive


@pytest.mark.parametrize(
    "answer",
    [
        b"done 0\n",
        b"done 0 0 1\n",
        b"done 0 0 5 0\nx",
        b"done 0 0 -1 0\n",
        b"done 0 0 99999999999 0\n",
        b"done 0 0 0 0 0\n",
    ],
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


def test_much_input_and_a_command_that_cannot_start(session: Session) -> None:
    told = bytes(range(256)) * 20_000
    assert session.run("md5sum", stdin=told, timeout=30).text == f"{hashlib.md5(told).hexdigest()}  -\n"
    assert session.run(f": {'x' * 3_000_000}", stdin=b"", timeout=10).status == 126


def test_a_command_is_not_killed_by_what_its_shell_leaves_running(session: Session) -> None:
    done = session.run(
        "sleep 0.3 & echo started; exec >/dev/null 2>&1; sleep 0.1; exit 3", stdin=b"", timeout=10
    )
    assert (done.status, done.text) == (3, "started\n")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(5)
        yield listener


def _heard(connection: socket.socket | SessionStream, size: int) -> bytes:
    heard = b""
    while len(heard) < size and (data := connection.recv(65536)):
        heard += data
    return heard


def test_a_stream_carries_bytes_both_ways_beside_commands(session: Session, listener: socket.socket) -> None:
    stream = session.open(listener.getsockname())
    far, _ = listener.accept()
    much = bytes(range(256)) * 10_000
    with far, ThreadPoolExecutor(4) as pool:
        command = pool.submit(lambda: session.run("sleep 0.2; echo done", stdin=b"", timeout=10).text)
        there, back = pool.submit(_heard, far, len(much)), pool.submit(_heard, stream, len(much))
        pool.submit(far.sendall, much)
        for at in range(0, len(much), 65536):
            stream.sendall(much[at : at + 65536])
        assert (there.result(), back.result(), command.result()) == (much, much, "done\n")


def test_either_side_ends_a_stream(session: Session, listener: socket.socket) -> None:
    first = session.open(listener.getsockname())
    far, _ = listener.accept()
    first.sendall(b"last words")
    first.close()
    with far:
        assert (far.recv(64), far.recv(64), first.recv(64)) == (b"last words", b"", b"")
    second = session.open(listener.getsockname())
    far, _ = listener.accept()
    far.sendall(b"bye")
    far.close()
    assert (second.recv(64), second.recv(64), second.recv(64)) == (b"bye", b"", b"")
    second.sendall(b"to nobody")
    assert session.run("echo alive", stdin=b"", timeout=10).text == "alive\n"


def test_a_stream_to_nobody_ends_at_once_and_so_does_one_whose_session_has_ended(
    session: Session, listener: socket.socket
) -> None:
    assert session.open(f"{listener.getsockname()}.gone").recv(64) == b""
    stream = session.open(listener.getsockname())
    with pytest.raises(EOFError):
        session.run("kill -9 $PPID", stdin=b"", timeout=30)
    assert stream.recv(64) == b""
    with pytest.raises(EOFError):
        session.open(listener.getsockname())


def test_input_that_a_child_holds_and_nobody_reads_does_not_keep_a_command(session: Session) -> None:
    done = session.run(
        "exec 3<&0; sleep 321.5 <&3 >/dev/null 2>&1 & echo started", stdin=b"x" * 10**6, timeout=5
    )
    assert done.text == "started\n"
    assert session.run("pkill -fx 'sleep 321.5'", stdin=b"", timeout=10).status == 0


def test_last_words_are_heard_by_who_still_talks(listener: socket.socket) -> None:
    heard: list[bytes] = []
    watch = exec_server.FilePoller()
    stream = exec_server.OutputStream(watch, listener.getsockname().encode(), heard.append)
    far, _ = listener.accept()
    far.sendall(b"last words")
    far.close()
    stream.send(b"to nobody")
    while heard[-1:] != [b""]:
        watch.serve(5)
    assert heard == [b"last words", b""]


def test_a_command_whose_session_has_ended_is_killed_and_meanwhile_others_wait(tmp_path: Path) -> None:
    """A killed process of ours leaves its last command on the machine, such as a breach."""
    lock, quick, slow = (tmp_path / name for name in ("orphans", "quick", "slow"))
    program = exec_server.__file__, f"Server(0, 1, {str(lock)!r}, 2.0).serve()"
    text = Path(program[0]).read_text().replace("Server(0, 1).serve()", program[1])
    with subprocess.Popen(
        [sys.executable, "-ISuc", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        session = Session(lambda data: _write(process, data), process.stdout)  # type: ignore[arg-type]
        with ThreadPoolExecutor(2) as pool:
            running = [
                pool.submit(
                    session.run, f"sleep {seconds}; touch {file}; sleep {seconds}", stdin=b"", timeout=60
                )
                for seconds, file in ((0.5, quick), (5, slow))
            ]
            time.sleep(0.3)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            time.sleep(0.3)
            assert subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode == 1
            assert subprocess.run(["flock", "--wait", "10", lock, "true"], check=False).returncode == 0
            assert process.wait(1) == 0
            for future in running:
                with pytest.raises(EOFError):
                    future.result(5)
    assert quick.exists()
    time.sleep(3)
    assert not slow.exists()


def test_a_session_that_ends_with_nothing_to_do_leaves_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "orphans"
    text = (
        Path(exec_server.__file__)
        .read_text()
        .replace("Server(0, 1).serve()", f"Server(0, 1, {str(lock)!r}, 9.0).serve()")
    )
    assert subprocess.run([sys.executable, "-ISuc", text], input=b"", check=False, timeout=5).returncode == 0
    assert not lock.exists()
