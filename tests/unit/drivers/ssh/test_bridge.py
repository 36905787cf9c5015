"""A bridge to a machine: its near end, and how it ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.drivers.ssh.client import Access, Host
from testbed.drivers.ssh.command_session import SessionStream

_LATE = 5.0  # seconds


class _Session:
    """A session whose machine has a socket, of which `far` is the other end."""

    alive = True

    def __init__(self) -> None:
        self.far, self._machine = socket.socketpair()
        self.far.settimeout(_LATE)
        self.asked: list[str] = []

    def open(self, path: str) -> SessionStream:
        self.asked.append(path)
        stream = SessionStream(
            lambda data: self._machine.sendall(data) if data else self._machine.shutdown(socket.SHUT_WR)
        )

        def listen() -> None:
            while data := self._machine.recv(64):
                stream.arrived(data)
            stream.arrived(b"")

        threading.Thread(target=listen, daemon=True).start()
        return stream

    def end(self) -> None:
        """Close both ends; `far` first, which ends the thread that listens at the other one."""
        self.far.close()
        self._machine.close()


@pytest.fixture
def session() -> Iterator[_Session]:
    session = _Session()
    yield session
    session.end()


@pytest.fixture
def host(session: _Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    client = SimpleNamespace(close=session.far.close)
    monkeypatch.setattr(Host, "_opened_session", lambda self: setattr(self, "_client", client) or session)
    return Host(Access("node-a", "192.0.2.1", tmp_path / "key", tmp_path / "host_key"))


@pytest.fixture
def near(host: Host, tmp_path: Path) -> Iterator[socket.socket]:
    """The client of the bridge."""
    host.bridge(tmp_path / "bridge", "/run/far")
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(_LATE)
        connected.connect(str(tmp_path / "bridge"))
        yield connected


def test_a_bridge_carries_bytes_both_ways(session: _Session, near: socket.socket) -> None:
    near.sendall(b"question")
    assert session.far.recv(64) == b"question"
    session.far.sendall(b"answer")
    assert near.recv(64) == b"answer"
    assert session.asked == ["/run/far"]


def test_who_still_waits_at_a_bridge_is_told_that_it_has_ended_before_close_returns(
    host: Host, session: _Session, near: socket.socket
) -> None:
    near.sendall(b"question")
    assert session.far.recv(64) == b"question"
    host.close()
    near.setblocking(False)
    assert near.recv(64) == b""


def test_the_machine_is_told_that_nobody_asks_any_more(session: _Session, near: socket.socket) -> None:
    near.sendall(b"question")
    near.close()
    assert session.far.recv(64) == b"question"
    assert session.far.recv(64) == b""
