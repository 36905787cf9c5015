"""The program that takes the pulse of guests; a pair of sockets stands for a tap."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.payload.heartbeats import pulse

ADDRESS = bytes((10, 0, 0, 2))
REPLY, REQUEST = b"\x00\x02", b"\x00\x01"


def answer(question: bytes, *, operation: bytes = REPLY, address: bytes = ADDRESS) -> bytes:
    """Return the answer of a guest to a question of ARP."""
    own, sender = b"\x0a\x00\x00\x00\x00\x01", question[6:12]
    return sender + own + question[12:20] + operation + own + address + sender + bytes(4)


class Guest(threading.Thread):
    """Answers questions of ARP on one end of a pair of sockets."""

    def __init__(self, end: socket.socket, reply: Callable[[int, bytes], list[bytes]]) -> None:
        super().__init__(daemon=True)
        self.end, self.reply, self.heard = end, reply, []  # type: ignore[var-annotated]

    def run(self) -> None:
        while question := self.end.recv(200):
            self.heard.append(question)
            for frame in self.reply(len(self.heard) - 1, question):
                self.end.send(frame)


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Let a wire have one end of a pair of sockets; return the other one."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Packet:
        """A socket of packets whose filter and name are not looked at."""

        def __init__(self, *_: object) -> None:
            self.send, self.recv, self.fileno = near.send, near.recv, near.fileno
            self.setblocking, self.close = near.setblocking, lambda: None
            self.setsockopt = self.bind = lambda *_: None

    monkeypatch.setattr(pulse.socket, "socket", Packet)
    yield far
    far.close()
    near.close()


def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, beats: int = 5) -> Any:
    (tmp_path / "red.web.pid").write_text(f"{os.getpid()}")
    monkeypatch.setattr(pulse, "_RUN", str(tmp_path))
    guests = {"red.web": {"tap0": "10.0.0.2"}}
    return pulse.collect({"beats": beats, "pause": 0.01, "patience": 0.2, "guests": guests})


def test_each_answer_counts_once_for_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: socket.socket
) -> None:
    guest = Guest(tap, lambda _, question: [answer(question)] * 2)
    guest.start()
    wire = collected(tmp_path, monkeypatch)["guests"]["red.web"]["wires"]["tap0"]
    assert wire["asked"] == 5
    assert sorted(wire["answered"]) == ["0", "1", "2", "3", "4"]
    (question, *_) = guest.heard
    assert (question[:6], question[12:14]) == (b"\xff" * 6, b"\x08\x06")
    assert question[28:32] == bytes(4)  # no sender's address, so that no table of neighbours changes
    assert question[38:42] == ADDRESS


@pytest.mark.parametrize(
    "reply",
    [
        lambda _, __: [],
        lambda _, question: [question],
        lambda _, question: [answer(question, operation=REQUEST)],
        lambda _, question: [answer(question, address=bytes((10, 0, 0, 3)))],
        lambda _, question: [b"\x02" + bytes(5) + answer(question)[6:]],
        lambda _, question: [question[6:10] + b"\x00\x09" + answer(question)[6:]],
        lambda _, question: [b"", answer(question)[:20]],
    ],
    ids=["silent", "echo", "request", "other address", "other token", "not asked yet", "cut"],
)
def test_other_frames_are_no_answer(
    reply: Callable[[int, bytes], list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tap: socket.socket,
) -> None:
    Guest(tap, reply).start()
    found = collected(tmp_path, monkeypatch)["guests"]["red.web"]
    assert found["wires"]["tap0"] == {"asked": 5, "answered": {}}


def test_a_worker_without_threads_of_processors_did_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: socket.socket
) -> None:
    found = collected(tmp_path, monkeypatch)["guests"]["red.web"]
    assert found["ran"] == []
    assert found["worker"][0] == os.getpid()
    assert found["worker"][:2] == found["worker"][2:]


def test_threads_that_run_a_processor_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: socket.socket
) -> None:
    over, named = threading.Event(), threading.Event()

    def run() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("CPU 0/KVM")
        named.set()
        while not over.wait(0.001):
            pass

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert named.wait(30)
        found = collected(tmp_path, monkeypatch, beats=3)["guests"]["red.web"]
    finally:
        over.set()
        thread.join()
    assert found["ran"] == [0, 1, 2]


def test_a_guest_without_worker_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: socket.socket
) -> None:
    monkeypatch.setattr(pulse, "_RUN", str(tmp_path / "none"))
    found: Any = pulse.collect(
        {"beats": 1, "pause": 0.01, "patience": 0, "guests": {"red.web": {"tap0": "10.0.0.2"}}}
    )
    assert found["guests"]["red.web"]["worker"] == [0, 0, 0, 0]


def test_a_clock_that_jumps_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: socket.socket
) -> None:
    asked = pulse.select.select

    def slow(*given: Any) -> Any:
        time.sleep(0.3)
        return asked(*given)

    monkeypatch.setattr(pulse.select, "select", slow)
    assert collected(tmp_path, monkeypatch, beats=1)["stood"] >= 0.29
