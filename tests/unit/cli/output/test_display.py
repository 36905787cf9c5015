"""The live display: a picture that goes away, and a line for each event without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from testbed.cli.output.display import Board, Patient, picture
from testbed.engine.place import Step
from testbed.report.columns import cells

ROOT = Path(__file__).parents[4]
HOSTILE = "[red]x[/red] \x1b[2J\x1b[31m\r\n::error::told 日本語 e\u0301\u0301 " + "w" * 300
RUN = """
import os, signal, sys, threading, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, which is inherited
from testbed.cli.output import display, terminal
from testbed.cli.up import at_once_on_interrupt
from testbed.cli.invocation.interrupts import interruptible
from testbed.engine.place import Step
HOSTILE = {hostile!r}
def step(number, seconds=0.15):
    name = f"NET-{{number:02}}.fleet"
    terminal.say(Step.begun(name))
    terminal.say(Step.note(name, f"{{name}}: {{HOSTILE}}"))
    time.sleep(seconds)
    terminal.say(Step.note(name, f"{{name}}: {{'fail' if number == 2 else 'pass'}}", well=number != 2))
    terminal.say(Step.ended(name))
def work(then=lambda number: None, steps=6, seconds=0.15):
    terminal.say("before it")
    with terminal.displayed("check"):
        terminal.say(Step.planned(steps))
        for number in range(steps):
            step(number, seconds)
            then(number)
    terminal.out("the result")
"""


_RESUMES = "interrupted; what was done stays, and the same command resumes"


def _program(body: str) -> list[str]:
    return [sys.executable, "-c", RUN.format(hostile=HOSTILE) + body]


def _environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "CI")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **more}


class _Screen:
    """A terminal with the functions that the display needs.

    It moves up, erases lines, and keeps the text.
    """

    def __init__(self, shown: str) -> None:
        self.lines, self.row, self.column, self.hidden = [""], 0, 0, False
        for part in re.split(r"(\x1b\[[?\d;]*[A-Za-z]|[\r\n])", shown):
            self._take(part)

    def _take(self, part: str) -> None:
        if part == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif part == "\r":
            self.column = 0
        elif part == "\x1b[2K":
            self.lines[self.row] = ""
        elif part.startswith("\x1b["):
            assert part.endswith(("m", "A", "l", "h")), part
            self.row -= int(part[2:-1] or 1) if part.endswith("A") else 0
            self.hidden = part == "\x1b[?25l" if part.endswith(("l", "h")) else self.hidden
        elif part:
            assert part.isprintable(), part
            self.lines[self.row] = self.lines[self.row][: self.column].ljust(self.column) + part
            self.column += len(part)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


def _in_terminal(
    body: str,
    act: Callable[[int, bytes], None] | None = None,
    width: int = 80,
    when: bytes = b" left",
    **more: str,
) -> tuple[str, _Screen, int]:
    """Run a program on a terminal; return its output, the last screen, and its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    child = subprocess.Popen(
        _program(body),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=_environment(**{"TERM": "xterm", **more}),
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        shown += data
        if act and when in shown:
            act(child.pid, shown)
            act = None
    os.close(ours)
    text = shown.decode()
    return text, _Screen(text), child.wait(60)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text)


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_terminal_sees_a_bar_that_goes_away(width: int) -> None:
    shown, screen, status = _in_terminal("work()", width=width)
    assert status == 0
    assert re.search(r"check .*[1-5] of 6, [1-5] left", _plain(shown))
    assert re.search(r" 0 s  NET-0\d.fleet: \[red\]x", _plain(shown))
    assert "1 with problems"[: width - 30] in _plain(shown)
    assert [re.sub(r"^ +[\d.]+ s  ", "", line) for line in screen.text.splitlines()] == [
        "before it",
        "NET-02.fleet: fail",
        "the result",
    ]
    assert not screen.hidden


def test_lines_of_others_do_not_run_into_the_picture() -> None:
    body = "work(lambda number: (terminal.say('said'), terminal.out('printed'), terminal.warn('warned'))[0])"
    _, screen, _ = _in_terminal(body)
    lines = [re.sub(r"^ +[\d.]+ s  ", "", line) for line in screen.text.splitlines()]
    own = ["said", "printed", "warned"]
    assert lines == ["before it", *own * 2, "NET-02.fleet: fail", *own * 4, "the result"]


def test_colours_can_be_declined_and_the_bar_stays() -> None:
    shown, _, _ = _in_terminal("work()", NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*3[0-9]", shown)
    assert re.search(r"\d of 6, \d left", _plain(shown))


def test_a_dumb_terminal_gets_lines() -> None:
    shown, screen, _ = _in_terminal("work()", width=200, TERM="dumb")
    assert "\x1b" not in shown
    assert "left" not in shown
    assert sum("fleet: " in line for line in screen.lines) == 12


def test_the_terminal_of_a_ci_system_gets_lines_without_colours() -> None:
    shown, screen, _ = _in_terminal("work()", width=200, CI="true")
    assert "\x1b" not in shown
    assert "left" not in shown
    assert sum("fleet: " in line for line in screen.lines) == 12


def test_quiet_shows_no_progress_and_no_picture() -> None:
    _, screen, status = _in_terminal("terminal.set_loudness(quiet=True, verbose=False)\nwork()")
    assert (status, screen.text) == (0, "the result")
    assert not screen.hidden


def test_an_error_leaves_no_picture() -> None:
    _, screen, status = _in_terminal(
        "def bad(number):\n    if number == 3: raise ValueError('it broke')\nwork(bad)"
    )
    assert status == 1
    assert screen.text.splitlines()[-1] == "ValueError: it broke"
    assert "left" not in screen.text
    assert not screen.hidden


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("body", "status", "last"),
    [
        ("work(steps=400)", None, None),
        ("interruptible(); work(steps=400)", -signal.SIGINT, "KeyboardInterrupt"),
        ("interruptible()\nwith at_once_on_interrupt(): work(steps=400)", 130, _RESUMES),
    ],
    ids=["default", "interruptible", "at once"],
)
def test_a_signal_leaves_no_picture(
    number: signal.Signals, body: str, status: int | None, last: str | None
) -> None:
    began = time.monotonic()
    _, screen, ended = _in_terminal(body, lambda pid, _: os.kill(pid, number))
    assert ended == (status if status is not None else -number)
    assert last is None or screen.text.splitlines()[-1] == last
    assert not re.search(r"\d left", screen.text)
    assert not screen.hidden
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("where", ["picture", "Console.render", "Patient.flush"])
def test_a_signal_while_something_is_drawn_or_printed_ends_the_process(where: str) -> None:
    body = f"""
where, inner = {where!r}, display.{where}
def slow(*given):
    if where == "picture" or threading.current_thread() is threading.main_thread():
        time.sleep(0.2)
    return inner(*given)
display.{where} = slow
interruptible()
with at_once_on_interrupt(), terminal.displayed("check"):
    terminal.say(Step.planned(4000))
    for number in range(4000):
        terminal.say(Step.note("x", f"line {{number}}", well=False))
"""
    _, screen, status = _in_terminal(body, lambda pid, _: os.kill(pid, signal.SIGTERM), when=b"line 7")
    assert status == 130
    assert not screen.hidden
    assert screen.text.splitlines()[-1] == _RESUMES


def _without_terminal(body: str, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _program(body),
        capture_output=True,
        text=True,
        check=False,
        env=_environment(TERM="xterm"),
        timeout=120,
        **given,
    )


def test_without_a_terminal_each_event_is_a_line() -> None:
    done = _without_terminal("work(seconds=0.01)")
    assert done.returncode == 0
    assert done.stdout == "the result\n"
    assert "\x1b" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.lstrip().startswith("|")]
    assert [re.sub(r"^ +[\d.]+ s  ", "", line).partition(": ")[::2] for line in lines[1::2]] == [
        (f"NET-{number:02}.fleet", "[red]x[/red] \ufffd[2J\ufffd[31m") for number in range(6)
    ]
    assert [line.rpartition(": ")[2] for line in lines[2::2]] == [
        "pass",
        "pass",
        "fail",
        "pass",
        "pass",
        "pass",
    ]
    assert len(lines) == 1 + 2 * 6


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_pipe_changes_no_exit_code(closed: str) -> None:
    body = "terminal.guard()\nwork(seconds=0.01)\nfrom testbed.cli.invocation.error_exit import status_of\n"
    body += "sys.exit(status_of(lambda: (terminal.out('more ' * 50_000), 3)[1]))"
    ours, theirs = os.pipe()
    os.close(ours)
    other = {"stdout": "stderr", "stderr": "stdout"}[closed]
    given: dict[str, Any] = {closed: theirs, other: subprocess.PIPE}
    done = subprocess.run(_program(body), text=True, check=False, env=_environment(), timeout=120, **given)
    os.close(theirs)
    assert done.returncode == 3
    assert "Broken" not in (done.stderr or "")
    assert "Exception" not in (done.stderr or "")
    assert "the result" in (done.stdout or "the result")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_reader_that_reads_nothing_holds_no_run_up(terminal: bool, tmp_path: Path) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    done = tmp_path / "done"
    body = f"""
display.Patient.patience = 0.3
with terminal.displayed("check"):
    terminal.say(Step.planned(20_000))
    for number in range(20_000):
        terminal.say(Step.note("x", "y" * 50, well=False))
    time.sleep(0.5)
os.mkdir({str(done)!r})
"""
    child = subprocess.Popen(_program(body), stderr=theirs, env=_environment(TERM="xterm"))
    os.close(theirs)
    try:
        assert child.wait(100) == 0
        assert done.exists()
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def test_a_reader_that_goes_on_gets_what_is_new() -> None:
    ours, theirs = os.pipe()
    stream = Patient(theirs)
    stream.patience = 0.05
    stream.write("x" * 200_000)
    stream.flush()
    kept = os.read(ours, 200_000)
    while select.select([ours], [], [], 0)[0]:
        kept += os.read(ours, 200_000)
    stream.write("new\n")
    stream.flush()
    assert os.read(ours, 100) == b"new\n"
    assert 4096 < len(kept) < 200_000
    os.close(ours)
    stream.write("nobody reads it\n")
    stream.flush()
    stream.close()
    assert stream.closed
    os.close(theirs)


def _lines(board: Board, width: int, height: int = 24) -> list[str]:
    console = Console(
        width=width,
        height=height,
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None,
        force_terminal=False,
    )
    with console.capture() as shown:
        console.print(picture("check", board, width, height), soft_wrap=False)
    return [line.rstrip() for line in shown.get().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_the_picture_fits_whatever_is_in_it(width: int) -> None:
    now = [0.0]
    board = Board(lambda: now[0])
    board.take(Step.planned(30))
    for number in range(12):
        board.take(Step.begun(f"{number}", f"{number} {HOSTILE}"))
        now[0] += 10
    board.take(Step.ended("11", well=False))
    lines = _lines(board, width)
    assert all(cells(line) <= width and line.isprintable() for line in lines)
    assert len(lines) == 1 + 8 + 1
    assert lines[0].startswith("check")
    assert width < 40 or "1 of 30, 29 left" in lines[0]
    assert width < 80 or "1 with problems" in lines[0]
    assert lines[1].startswith("  120 s  0 [red]x"[: width - 1])
    assert lines[-1] == "         and 3 more"[:width]
    assert len(_lines(board, width, height=6)) == 1 + 3 + 1


def test_the_board_counts_what_is_planned_runs_and_has_ended() -> None:
    board = Board(lambda: 0.0)
    assert board.total == 0
    steps = (
        Step.planned(2),
        Step.begun("a"),
        Step.note("a", "a does it"),
        Step.note("b", "not begun"),
        Step.begun("b"),
    )
    for step in (*steps, Step.ended("b")):
        board.take(step)
    assert (board.planned, board.done, board.total, board.wrong) == (2, 1, 2, 0)
    assert board.running == [(0.0, "a does it")]
    board.take(Step.planned(3))
    board.take(Step.ended("a", "a: failed", well=False))
    assert (board.done, board.total, board.wrong, board.running) == (2, 5, 1, [])


def test_a_signal_while_an_event_is_recorded_does_not_wait_for_the_picture() -> None:
    """The handler waits for the thread that draws, which asks the board what runs."""
    ended: list[bool] = []

    def handler() -> float:  # runs where the board reads its clock, as a signal could come there
        if threading.current_thread() is threading.main_thread():
            drawing = threading.Thread(target=lambda: board.running, daemon=True)
            drawing.start()
            drawing.join(10)
            ended.append(not drawing.is_alive())
        return 0.0

    board = Board(handler)
    board.take(Step.begun("a"))
    assert ended == [True]
