"""A bridge to a machine: what is at its near end, and how it ends."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.drivers.ssh import Access, Host

_LATE = 5.0  # seconds


class _Channel(socket.socket):
    """A channel whose far end is a socket."""

    def exec_command(self, command: str) -> None:
        self.command = command


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """A host whose connection is a pair of sockets; `far` is the machine's end."""
    near, far = socket.socketpair()
    channel = _Channel(fileno=near.detach())
    transport = SimpleNamespace(open_session=lambda timeout: channel)
    client = SimpleNamespace(get_transport=lambda: transport, close=far.close)
    monkeypatch.setattr(Host, "_connected", lambda self: setattr(self, "_client", client) or client)
    host = Host(Access("node-a", "192.0.2.1", tmp_path / "key", tmp_path / "host_key"))
    host.far = far
    far.settimeout(_LATE)
    return host


@pytest.fixture
def near(host: Host, tmp_path: Path) -> socket.socket:
    """Who connects to the bridge."""
    host.bridge(tmp_path / "bridge", "serve")
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(_LATE)
    connected.connect(str(tmp_path / "bridge"))
    return connected


def test_a_bridge_carries_bytes_both_ways(host: Host, near: socket.socket) -> None:
    near.sendall(b"question")
    assert host.far.recv(64) == b"question"
    host.far.sendall(b"answer")
    assert near.recv(64) == b"answer"


def test_who_still_waits_at_a_bridge_is_told_that_it_has_ended_before_close_returns(host: Host, near: socket.socket) -> None:
    near.sendall(b"question")
    assert host.far.recv(64) == b"question"
    host.close()
    near.setblocking(False)
    assert near.recv(64) == b""


def test_the_machine_is_told_that_nobody_asks_any_more(host: Host, near: socket.socket) -> None:
    near.sendall(b"question")
    near.close()
    assert host.far.recv(64) == b"question"
    assert host.far.recv(64) == b""
