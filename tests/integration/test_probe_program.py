"""The probe's program as a process: started once, asked through its pipe, unimpressed by nonsense."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.payload.probe import wire
from testbed.verify.guest_agent import Files
from testbed.verify.probe import transport
from testbed.verify.probe.client import Instrument
from testbed.verify.probe.transport import FOLDER, AgentPipe
from tests.local_agent import LocalAgent

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LISTEN: dict[str, object] = {"phase": "listen", "token": "tb-0123abcd-", "interfaces": [], "patience": 0}
PORT = 47123
FINISH: dict[str, object] = {"phase": "finish", "token": "tb-0123abcd-"}


@pytest.fixture(params=["programs", "files"])
def probe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Instrument, Path]]:
    """A program that is reached as those on machines are, and one that is reached as those in guests are."""
    own = str(tmp_path / "probe")

    def run(argv: list[str], stdin: bytes, timeout: float) -> bytes:
        if argv[0] == "/usr/bin/python3":
            stdin = zlib.compress(zlib.decompress(stdin).replace(FOLDER.encode(), own.encode()))
        argv = [sys.executable if word == "/usr/bin/python3" else word.replace(FOLDER, own) for word in argv]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise InstrumentError("it failed", fact=done.stderr.decode(), remedy="-")
        return done.stdout

    guest = SimpleNamespace(label="red/web", domain="red.web")
    files = Files(LocalAgent(lambda path: path.replace(FOLDER, own)), guest)  # type: ignore[arg-type]
    fleet: Any = SimpleNamespace(evidence=SimpleNamespace(record=lambda *_: None), files_of=lambda _: files)
    instrument = Instrument("here", run, pipe=AgentPipe(fleet, guest) if request.param == "files" else None)  # type: ignore[arg-type]
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


def test_what_has_come_in_so_far_can_be_asked_while_recording_goes_on(probe: tuple[Instrument, Path]) -> None:
    """Of this run only; who asks gives no token away."""
    instrument, _ = probe
    instrument.listen({**LISTEN, "udp": [PORT]})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(5)
        sender.sendto(b"tb-0123abcd-one.", ("127.0.0.1", PORT))
        assert sender.recv(64) == b"ok-tb-0123abcd-one."
    glance = {"phase": "glance", "token": "tb-0123abcd-"}
    assert instrument.ask(glance)["seen"] == ["tb-0123abcd-one."]
    assert "seen" not in instrument.ask({**glance, "token": "tb-ffffffff-"})
    assert {record["token"] for record in instrument.ask(FINISH)["records"]} == {"tb-0123abcd-one."}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 9999,
        wire.pack([]),
        wire.pack("x"),
        wire.pack({"phase": "listen"}),
        wire.pack({"answer": "../../etc/x", "phase": "finish"}),
    ],
)
def test_nonsense_is_passed_over(probe: tuple[Instrument, Path], line: bytes) -> None:
    """Whoever writes into the pipe does not end the program, and gets no file written."""
    instrument, folder = probe
    instrument.listen(LISTEN)
    with (folder / "in").open("wb") as pipe:
        pipe.write(line + b"\n")
    assert instrument.ask(FINISH)["alive"] is True
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("answer.")) == [
        "in",
        "pid",
    ]


def test_what_is_asked_may_be_long(probe: tuple[Instrument, Path]) -> None:
    """Longer than a pipe is by itself, and than a shell's line."""
    instrument, _ = probe
    listen = {**LISTEN, "known": [secrets.token_hex(6) for _ in range(40_000)]}
    assert instrument.listen(listen)["ready"] is True


def test_a_program_that_was_killed_is_told_and_the_next_observation_has_another(
    probe: tuple[Instrument, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the dead."""
    monkeypatch.setattr(transport, "_DOUBT", 0.5)
    instrument, folder = probe
    first = instrument.listen(LISTEN)["pid"]
    killed = os.pidfd_open(int((folder / "pid").read_text()))
    signal.pidfd_send_signal(killed, signal.SIGKILL)
    select.select([killed], [], [], 10)
    with pytest.raises(InstrumentError) as raised:
        instrument.ask(FINISH)
    assert "the probe does not run" in f"{raised.value.what} {raised.value.fact}"
    assert instrument.listen(LISTEN)["pid"] != first


def test_what_a_killed_run_has_left_sending_does_not_outlive_the_next_start(
    probe: tuple[Instrument, Path],
) -> None:
    """Nobody has told it to stop, and the ports that it holds are wanted."""
    instrument, _ = probe
    listen = {**LISTEN, "udp": [PORT], "patience": 5}
    instrument.listen(listen)
    instrument._pipe.tell(
        wire.pack({"phase": "stream", "answer": secrets.token_hex(8), "probes": [], "duration": 120}) + b"\n",
        10,
    )
    time.sleep(0.5)
    instrument._started = False
    started = time.monotonic()
    assert instrument.listen(listen)["listening"] == [f"udp/{PORT}"]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "wrong", [{"phase": "_read"}, {"phase": "nothing"}, {"phase": "send"}, {"phase": "listen", "token": "x"}]
)
def test_a_wrong_question_gets_an_error(probe: tuple[Instrument, Path], wrong: dict[str, object]) -> None:
    """And the program goes on."""
    instrument, _ = probe
    assert "error" in instrument.ask(wrong)
    assert instrument.listen(LISTEN)["ready"] is True


def test_a_machine_that_was_paused_has_noticed_it(probe: tuple[Instrument, Path]) -> None:
    """It is asked other things meanwhile, and tells how long it stood still when it is told to rest."""
    instrument, folder = probe
    instrument.listen(LISTEN)
    with ThreadPoolExecutor(max_workers=1) as pool:
        beating = pool.submit(instrument.ask, {"phase": "beat", "duration": 60})
        time.sleep(1)
        group = os.getpgid(int((folder / "pid").read_text()))
        os.killpg(group, signal.SIGSTOP)
        time.sleep(2)
        os.killpg(group, signal.SIGCONT)
        assert instrument.ask({"phase": "finish", "token": "tb-0123abcd-"})["alive"] is True
        instrument.ask({"phase": "rest"})
        found = beating.result(timeout=20)
    assert found["rested"] is True
    assert found["longest"] > 1.7
