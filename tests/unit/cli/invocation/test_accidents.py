"""Accidents of a user's machine: closed pipes, full disks, foreign alphabets.

Their exit code is never that of a verdict.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.cli import main, topology_files
from testbed.cli.invocation import error_exit
from testbed.cli.output import terminal
from testbed.errors import Exit

ROOT = Path(__file__).parents[4]
GOOD = ROOT / "topologies/one-node.yaml"
PROGRAM = [sys.executable, "-m", "testbed"]
VERDICTS = {Exit.OK, Exit.FAIL, Exit.INCONCLUSIVE}


def _environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "TESTBED_STATE_DIR": str(folder / "s"),
        "TESTBED_CACHE_DIR": str(folder / "c"),
        **more,
    }


def _run(
    words: list[str], folder: Path, redirection: str = "", **more: str
) -> subprocess.CompletedProcess[bytes]:
    script = f'exec "$@" {redirection}'
    argv = ["sh", "-c", script, "sh", *PROGRAM, *words]
    return subprocess.run(
        argv, capture_output=True, env=_environment(folder, **more), timeout=120, check=False, cwd=folder
    )


@pytest.mark.parametrize(
    ("redirection", "status", "told"),
    [
        (">/dev/full", Exit.PROVISIONING, b"No space left on device"),
        ("2>/dev/full", Exit.OK, b""),
        ("<&- >&- 2>&-", Exit.OK, b""),
    ],
)
def test_a_stream_that_takes_nothing(redirection: str, status: int, told: bytes, tmp_path: Path) -> None:
    done = _run(["validate", str(GOOD)], tmp_path, redirection)
    assert (done.returncode, told in done.stderr) == (status, True)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "status"), [(["validate", str(GOOD)], Exit.OK), (["validate", "missing"], Exit.USAGE)]
)
def test_a_reader_that_has_gone_changes_no_exit_code(words: list[str], status: int, tmp_path: Path) -> None:
    """Python would end with 120, and its libraries with 1, which is the code of an open wall."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = _environment(tmp_path)
    done = subprocess.run(
        [*PROGRAM, *words], env=environment, timeout=120, check=False, stdout=writing, stderr=writing
    )
    os.close(writing)
    assert done.returncode == status


def test_a_slow_reader_of_a_stream_that_does_not_block_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    stream = terminal._held(writing, None)
    text = "x" * 300_000
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            stream.write(text)
            stream.flush()
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as opened:
        assert opened.read() == text
    assert os.waitpid(pid, 0)[1] == 0


class Broken:
    """A standard output whose end is gone, or whose disk is full, as `terminal` sees it."""

    def __init__(self, number: int) -> None:
        self.buffer = self
        self.raw = self
        self.lost = OSError(number, os.strerror(number))

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("code", list(Exit))
@pytest.mark.parametrize(
    ("number", "harmless"),
    [(errno.EPIPE, True), (errno.EIO, True), (errno.ENOSPC, False), (errno.EDQUOT, False)],
)
def test_a_verdict_keeps_its_code_and_lost_output_is_no_success(
    code: Exit, number: int, harmless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    with terminal.ERR.capture() as said:
        found = terminal.finish(code)
    assert found == (code if harmless or code else Exit.PROVISIONING)
    assert bool(said.get()) is not harmless


def _status(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["testbed", *words])
    monkeypatch.setattr(error_exit, "guard", lambda: None)
    with pytest.raises(SystemExit) as caught:
        main.main()
    return int(caught.value.code or 0)


def _raises(error: BaseException) -> Callable[..., None]:
    def fails(*_: object, **__: object) -> None:
        raise error

    return fails


ACCIDENTS = [
    OSError(errno.ENOSPC, "No space left on device", "/x/y"), OSError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EROFS, "Read-only", "/x"),
    PermissionError(errno.EACCES, "Permission denied", "/x"),
    OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300),
    OSError(errno.EMFILE, "Too many open files"), OSError("without a number"), MemoryError(), TimeoutError(),
    ConnectionResetError(104, "reset"),
]  # fmt: skip


@pytest.mark.parametrize("error", ACCIDENTS, ids=repr)
def test_what_the_system_refuses_has_a_reason_and_no_traceback(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library would turn any broken pipe into the exit code of an open wall."""
    monkeypatch.setattr(topology_files, "topology_of", _raises(error))
    assert _status(["graph", "x"], monkeypatch) == Exit.PROVISIONING
    said = capsys.readouterr().err
    assert "observed: " in said
    assert "to do: " in said
    assert "Traceback" not in said
    assert "report this as a bug" not in said


ENDS = [(SystemExit(1), 5), (SystemExit("words"), 5), (SystemExit(0), 0), (KeyboardInterrupt(), 130)]


@pytest.mark.parametrize(("error", "status"), ENDS)
def test_no_library_ends_a_command_with_the_code_of_a_verdict(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology_files, "topology_of", _raises(error))
    assert _status(["graph", "x"], monkeypatch) == status


LONG = "n" * 300
VERBS = [
    ["validate", LONG], ["plan", LONG], ["up", LONG], ["up", f"{LONG}/{LONG}.yaml"], ["check", LONG],
    ["report", LONG], ["run", LONG],
    ["down", LONG], ["status", LONG], ["ssh", LONG, LONG], ["exec", LONG, LONG, LONG],
    ["console", LONG, LONG], ["logs", LONG, LONG],
    ["graph", LONG], ["checkpoint", "rm", LONG], ["checkpoint", "restore", LONG],
    ["checkpoint", "save", LONG], ["image", "rm", LONG],
    ["validate", "a\udcffb"], ["check", "a\udcffb"], ["graph", "a\udcffb"], ["validate", ""], ["check", ""],
    ["up", ""], ["up", "/"],
    ["graph", "."], ["check", "."], ["validate", "/dev"], ["graph", "/proc/self/mem"], ["graph", "/dev/null"],
    ["check", "/"],
]  # fmt: skip


@pytest.mark.parametrize(
    "words", VERBS, ids=lambda words: " ".join(words)[:30].encode("ascii", "replace").decode()
)
def test_names_that_nothing_has_are_refused_in_words(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("TESTBED_CACHE_DIR", str(tmp_path / "c"))
    assert _status(words, monkeypatch) == Exit.USAGE
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said) < 3000


ASCII = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}  # else Python takes UTF-8 in this locale


@pytest.mark.parametrize("more", [ASCII, {"LC_ALL": "C"}, {"LC_ALL": "nowhere.UTF-8"}], ids=repr)
def test_a_locale_changes_no_file_and_stops_nothing(more: dict[str, str], tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from testbed.cli.output import terminal; terminal.guard()\n"
        f"text = '\\u65e5 \\u2026 \\xfc'; Path({str(tmp_path / 'f')!r}).write_text(text)\n"
        "terminal.out(text); terminal.warn(text); terminal.finish(0)"
    )
    argv = [sys.executable, "-c", script]
    done = subprocess.run(
        argv, capture_output=True, env=_environment(tmp_path, **more), timeout=60, check=False, cwd=ROOT
    )
    text = "\u65e5 \u2026 \xfc"
    assert (done.returncode, (tmp_path / "f").read_bytes().decode(), done.stdout.decode()) == (
        0,
        text,
        f"{text}\n",
    ), done.stderr
    assert done.stderr.decode() == f"{text}\n"


def test_a_terminal_gets_the_letters_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import io  # noqa: PLC0415
    import pty  # noqa: PLC0415

    master, slave = pty.openpty()
    before = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    stream = terminal._held(slave, before)
    assert stream.encoding == "latin-1"
    stream.write("ü日\n")
    stream.flush()
    assert os.read(master, 100) == b"\xfc?\r\n"
    os.close(master)
    stream.write("gone\n")
    stream.flush()
    assert stream.buffer.raw.lost.errno == errno.EIO  # type: ignore[attr-defined]
    os.close(slave)
