"""The probe's server: what is ready at once does not fall over one another."""

from __future__ import annotations

import os
import selectors
import socket
from pathlib import Path

from testbed.guest import probe


def test_what_was_closed_by_its_neighbour_is_left_alone(tmp_path: Path) -> None:
    """The end of an observation closes sockets that have become readable in the same moment."""
    os.mkfifo(tmp_path / "in")
    with (tmp_path / "pid").open("w") as lock:
        server = probe.Server(tmp_path, 60, lock)
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
