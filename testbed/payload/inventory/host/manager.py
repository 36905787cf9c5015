"""Asks systemd's manager over its private socket for many properties at once, and only for those wanted.

`systemctl show` and a dump ask for all properties of a unit. One of them, NeedDaemonReload, makes the manager
search a dozen folders for drop-ins of each unit: 5 s or more on an emulated node.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from testbed.payload.inventory.base.collect import Unread
from testbed.payload.inventory.host import bus

SOCKET = "/run/systemd/private"
NAME = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_LIMIT = 32 * 2**20  # octets of all answers
_AT_ONCE = 100  # questions before their answers are read, which must fit into the socket's buffers
_PIECE = 2**18


class Manager:
    """A connection to the manager, which only root gets.

    Args:
        seconds: that all answers together may take.

    Raises:
        Unread: it does not answer.

    """

    def __init__(self, path: str = SOCKET, seconds: float = 60.0) -> None:
        self._end, self._data, self._heard, self._serial = time.monotonic() + seconds, b"", 0, 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        try:
            self._socket.connect(path)
            self._send(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")  # 30 is the account 0 in hexadecimal
            while b"\r\n" not in self._data:
                self._hear()
        except (OSError, Unread) as error:
            self._socket.close()
            raise Unread(f"the manager does not answer: {error}") from error
        greeting, _, self._data = self._data.partition(b"\r\n")
        if not greeting.startswith(b"OK"):
            self._socket.close()
            raise Unread(f"the manager refuses: {greeting[:80]!r}")

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def units(self) -> list[tuple[str, str, str, str, str]]:
        """Return name, load state, active state, state below and object of each unit that is loaded."""
        (body,) = self._asked([bus.message(PATH, f"{NAME}.Manager", "ListUnits")])
        listed = bus.Reader(body).value("a(ssssssouso)")
        return [(name, load, active, below, path) for name, _, load, active, below, _, path, *_ in listed]

    def properties(self, questions: list[tuple[str, str, str]]) -> list[Any]:
        """Return values of properties, each given by the path of its object, interface and name."""
        calls = [
            bus.message(path, _PROPERTIES, "Get", interface, name) for path, interface, name in questions
        ]
        return [bus.Reader(body).value("v") for body in self._asked(calls)]

    def all_properties(self, paths: list[str], interface: str) -> Iterator[bytes]:
        """Yield the properties that each object has by an interface, for `Properties`."""
        return self._asked([bus.message(path, _PROPERTIES, "GetAll", interface) for path in paths])

    def _asked(self, calls: list[bytes]) -> Iterator[bytes]:
        """Yield the body of the answer to each call, in the order of the calls."""
        for at in range(0, len(calls), _AT_ONCE):
            group = calls[at : at + _AT_ONCE]
            first, self._serial = self._serial + 1, self._serial + len(group)
            self._send(b"".join(bus.numbered(call, first + number) for number, call in enumerate(group)))
            answers = dict(self._answers())
            for number in range(first, first + len(group)):
                while number not in answers:
                    self._hear()
                    answers.update(self._answers())
                yield answers.pop(number)

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """Yield the answers that have come whole: serial number of the call, and body."""
        data, at = self._data, 0
        while len(data) - at >= 16:
            size, _, fields = struct.unpack_from("<III", data, at + 4)
            start = 16 + fields + -fields % 8
            if len(data) - at < start + size:
                break
            kind, whole = data[at + 1], data[at : at + start + size]
            at += len(whole)
            told = bus.head(whole, 16 + fields)
            if kind == bus.ERROR:
                raise Unread(f"the manager answers: {bus.Reader(whole[start:]).text()[:200]}")
            if kind == bus.RETURN:
                yield told, whole[start:]
        self._data = data[at:]

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Unread(f"the manager does not listen: {error.strerror or error}") from error

    def _hear(self) -> None:
        try:
            self._socket.settimeout(max(0.01, self._end - time.monotonic()))
            piece = self._socket.recv(_PIECE)
        except OSError as error:
            raise Unread(f"the manager is silent: {error.strerror or error}") from error
        self._heard += len(piece)
        if not piece or time.monotonic() > self._end or self._heard > _LIMIT:
            why = "too much" if self._heard > _LIMIT else "not in time" if piece else "only in part"
            raise Unread(f"the manager answers {why}")
        self._data += piece


class Properties:
    """Reads the properties of objects; one that is as in the last object is not parsed again.

    All objects of an interface have the same properties in the same order, and most values are the same too.
    A property begins at a multiple of 8 octets, so its octets mean the same wherever they are.

    Args:
        wanted: whether a property of this name is looked at.
        shown: what is kept of a property, by its name and value; None to leave it out.

    """

    def __init__(self, wanted: Callable[[str], bool], shown: Callable[[str, Any], object]) -> None:
        self._wanted, self._shown = wanted, shown
        self._last: list[tuple[bytes, int, str, object]] = []  # octets to compare, length, name, what is kept

    def read(self, body: bytes) -> dict[str, object]:
        """Return what is kept of the properties in an answer, by their names."""
        found: dict[str, object] = {}
        answer, number, last = bus.Reader(body), 0, self._last
        end, at = answer.end("{sv}"), answer.at
        while at < end:
            at += -at % 8
            if number < len(last) and body.startswith(last[number][0], at):
                _, length, name, kept = last[number]
                at += length
            else:
                answer.at = start = at
                name, kept, compared = self._parsed(answer)
                at = answer.at
                last[number : number + 1] = [(body[start:compared], at - start, name, kept)]
            number += 1
            if kept is not None:
                found[name] = kept
        if at > len(body):
            raise Unread("the manager's answer is cut off")
        return found

    def _parsed(self, answer: bus.Reader) -> tuple[str, object, int]:
        """Return name, what is kept, and where the octets end that decide on both."""
        name, kind = answer.text(), answer.text(1)
        if self._wanted(name):
            return name, self._shown(name, answer.value(kind)), answer.at
        value = answer.at
        answer.skip(kind)
        return name, None, value if kind in bus.SIZES else answer.at
