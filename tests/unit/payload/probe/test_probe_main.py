"""The probe's server: what is ready at once does not fall over one another."""

from __future__ import annotations

import base64
import os
import selectors
import socket
import zlib
from pathlib import Path

import pytest

from testbed.payload.probe import main, wire


def test_what_was_closed_by_its_neighbour_is_left_alone(tmp_path: Path) -> None:
    """The end of an observation closes sockets that have become readable in the same moment."""
    os.mkfifo(tmp_path / "in")
    with (tmp_path / "pid").open("w") as lock:
        server = main.Server(tmp_path, 60, lock)
        server.selector.unregister(server.pipe)
        pairs = [socket.socketpair() for _ in range(2)]
        done = []

        def close_other(own: socket.socket) -> None:
            done.append(own.recv(1))
            for mine, _ in pairs:
                if mine is not own:
                    server.selector.unregister(mine)
                    mine.close()

        for mine, far in pairs:
            server.selector.register(mine, selectors.EVENT_READ, close_other)
            far.send(b"x")
        server.turn()
        assert done == [b"x"]


@pytest.mark.parametrize(
    "message", [{}, {"probes": [{"frame": "00" * 60}] * 100, "text": "ä\n"}, [1, None], "text"]
)
def test_messages_come_out_as_they_went_in(message: object) -> None:
    line = wire.pack(message)
    assert wire.unpack(line) == message
    assert b"\n" not in line


BOMB = base64.b64encode(zlib.compress(b'"' + bytes(wire.MAX_MESSAGE) + b'"'))
NO_MESSAGES = [
    b"",
    b"no base64",
    b"AAAA",
    wire.pack({})[:-8],
    BOMB,
    base64.b64encode(zlib.compress(b"[" * 200_000)),
    b"\xff" * 9,
]


@pytest.mark.parametrize("line", NO_MESSAGES, ids=range(len(NO_MESSAGES)))
def test_what_is_no_message_is_told(line: bytes) -> None:
    """What a guest says may be anything, and may want to fill our memory."""
    with pytest.raises(ValueError, match=r"."):
        wire.unpack(line)
