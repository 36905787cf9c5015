"""The probe's program as a process: started once, asked through its pipe, unimpressed by nonsense."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.errors import InstrumentError
from testbed.guest import wire
from testbed.verify.probing import FOLDER, Instrument

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LISTEN: dict[str, object] = {"phase": "listen", "token": "tb-0123abcd-", "interfaces": [], "patience": 0}
FINISH: dict[str, object] = {"phase": "finish", "token": "tb-0123abcd-"}


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[tuple[Instrument, Path]]:
    own = str(tmp_path / "probe")

    def run(argv: list[str], stdin: bytes, timeout: float) -> bytes:
        if argv[0] == "/usr/bin/python3":
            stdin = zlib.compress(zlib.decompress(stdin).replace(FOLDER.encode(), own.encode()))
        argv = [sys.executable if word == "/usr/bin/python3" else word.replace(FOLDER, own) for word in argv]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise InstrumentError("it failed", fact=done.stderr.decode(), remedy="-")
        return done.stdout

    instrument = Instrument("here", run)
    yield instrument, Path(own)
    instrument.end()
    end = time.monotonic() + 10
    while Path(own).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(own).exists()


def test_one_program_answers_many_questions(probe: tuple[Instrument, Path]) -> None:
    """Each observation has its own recorder, in the same process."""
    instrument, _ = probe
    pids = set()
    for _ in range(3):
        pids.add(instrument.listen(LISTEN)["pid"])
        assert instrument.ask(FINISH)["alive"] is True
    assert len(pids) == 1


def test_a_program_that_was_ended_is_started_anew_when_asked(probe: tuple[Instrument, Path]) -> None:
    """Ending it leaves none behind, and the next observation has one of its own."""
    instrument, folder = probe
    first = instrument.listen(LISTEN)["pid"]
    instrument.end()
    end = time.monotonic() + 10
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not folder.exists()
    assert instrument.listen(LISTEN)["pid"] != first


def test_what_was_not_recorded_is_not_vouched_for(probe: tuple[Instrument, Path]) -> None:
    """A recorder that has ended, or that belongs to another run, is not alive."""
    instrument, _ = probe
    assert instrument.ask(FINISH)["alive"] is False
    instrument.listen(LISTEN)
    assert instrument.ask({**FINISH, "token": "tb-ffffffff-"})["alive"] is False


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"\xff\xfe", b"[" * 9999, wire.pack([]), wire.pack("x"), wire.pack({"phase": "listen"}),
        wire.pack({"answer": "../../etc/x", "phase": "collect"}),
    ],
)
def test_nonsense_is_passed_over(probe: tuple[Instrument, Path], line: bytes) -> None:
    """Whoever writes into the pipe does not end the program, and gets no file written."""
    instrument, folder = probe
    instrument.listen(LISTEN)
    with (folder / "in").open("wb") as pipe:
        pipe.write(line + b"\n")
    assert instrument.ask(FINISH)["alive"] is True
    assert sorted(path.name for path in folder.iterdir()) == ["in", "pid"]


@pytest.mark.parametrize("wrong", [{"phase": "_read"}, {"phase": "nothing"}, {"phase": "send"}, {"phase": "listen", "token": "x"}])
def test_a_wrong_question_gets_an_error(probe: tuple[Instrument, Path], wrong: dict[str, object]) -> None:
    """And the program goes on."""
    instrument, _ = probe
    assert "error" in instrument.ask(wrong)
    assert instrument.listen(LISTEN)["ready"] is True
