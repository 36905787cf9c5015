"""Asks servers of Open vSwitch and OVN over their sockets, without a program for each question.

Both protocols are JSON-RPC 1.0 without frames: OVSDB (RFC 7047, 4) and that of ovs-appctl.
"""

from __future__ import annotations

import glob
import json
import socket
import time
from typing import Any

from testbed.payload.inventory.base.collect import Unread

LIMIT = 24 * 2**20  # octets of one answer
_PIECE = 2**18


class Server:
    """A connection to a server.

    Args:
        pattern: of its socket's path; the first that accepts counts, since a server that fell leaves its own.
        seconds: that one answer may take.

    Raises:
        Unread: nothing listens there.

    """

    def __init__(self, pattern: str, seconds: float = 20.0) -> None:
        self._seconds, self._data = seconds, bytearray()
        for self._path in sorted(glob.glob(pattern)) or [pattern]:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(seconds)
            try:
                self._socket.connect(self._path)
            except OSError as error:
                self._socket.close()
                why = error.strerror or str(error)
            else:
                return
        raise Unread(f"{self._path}: {why}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, method: str, *params: object) -> Any:
        """Return the result of a method.

        Raises:
            Unread: the server refuses, hangs, or answers something else.

        """
        try:
            self._socket.sendall(json.dumps({"id": 0, "method": method, "params": params}).encode())
            end = time.monotonic() + self._seconds
            while True:
                told = self._message(end)
                if isinstance(told, dict) and told.get("id") == 0:
                    break
        except OSError as error:
            raise Unread(f"{method}: {error.strerror or error}") from error
        if told.get("error") is not None:
            raise Unread(f"{method}: {str(told['error'])[:300]}")
        if "result" not in told:
            raise Unread(f"{method}: {self._path} answers without a result")
        return told["result"]

    def _message(self, end: float) -> Any:
        """Return the next message; what follows it is kept."""
        while True:
            if self._data.rstrip().endswith(b"}"):
                text = self._data.decode(errors="backslashreplace").lstrip()
                try:
                    told, at = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    pass  # it has not come whole
                except RecursionError as error:
                    raise Unread(f"{self._path} answers something else than expected") from error
                else:
                    self._data = bytearray(text[at:].encode())
                    return told
            piece = self._socket.recv(_PIECE)
            if not piece or time.monotonic() > end:
                why = "does not answer in time" if piece else "ends its answer early"
                raise Unread(f"{self._path} {why}")
            self._data += piece
            if len(self._data) > LIMIT:
                raise Unread(f"{self._path} answers more than {LIMIT} octets")
