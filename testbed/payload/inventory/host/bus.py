"""D-Bus's wire format (D-Bus specification, "Message Protocol"), with the lowest octet first."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

from testbed.payload.inventory.base.collect import Unread

CALL, RETURN, ERROR = 1, 2, 3  # types of messages
_OBJECT, _INTERFACE, _MEMBER, _REPLY_TO, _SIGNATURE = 1, 2, 3, 5, 8  # fields of a message's head
SIZES = {"y": 1, "n": 2, "q": 2, "b": 4, "i": 4, "u": 4, "h": 4, "x": 8, "t": 8, "d": 8}
_STRUCTURES = ("(", "{")


class Reader:
    """Reads values.

    Raises:
        Unread: the data ends early, or has a type that does not exist.

    """

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data, self.at = data, at

    def align(self, size: int) -> None:
        """Move to the next multiple of a size."""
        self.at += -self.at % size

    def number(self, size: int = 4, *, signed: bool = False) -> int:
        """Return a number of some octets."""
        start = self.at + -self.at % size
        self.at = start + size
        if self.at > len(self._data):
            raise Unread("the manager's answer is cut off")
        return int.from_bytes(self._data[start : self.at], "little", signed=signed)

    def text(self, size: int = 4) -> str:
        """Return a text whose length is a number of some octets."""
        length = self.number(size)
        start, self.at = self.at, self.at + length + 1
        if self.at > len(self._data):
            raise Unread("the manager's answer is cut off")
        return self._data[start : start + length].decode(errors="backslashreplace")

    def end(self, kind: str) -> int:
        """Move to the first item of a list of a type, and return where the list ends."""
        size = self.number()
        self.align(_alignment(kind))
        if self.at + size > len(self._data):
            raise Unread("the manager's answer is cut off")
        return self.at + size

    def value(self, kind: str) -> Any:
        """Return a value by its signature; structures are lists."""
        first = kind[:1]
        if first in ("s", "o"):
            return self.text()
        if first == "a":
            end, found = self.end(kind[1:]), []
            while self.at < end:
                found.append(self.value(kind[1:]))
            return found
        if first in SIZES:
            number = self.number(SIZES[first], signed=first in "nix")
            return bool(number) if first == "b" else number
        if first in ("v", "g"):
            text = self.text(1)
            return self.value(text) if first == "v" else text
        inner = parts(kind[1:-1]) if first in _STRUCTURES else ()
        if not inner:
            raise Unread(f"the manager answers with a value of type {kind!r}")
        self.align(8)
        return [self.value(part) for part in inner]

    def skip(self, kind: str) -> None:
        """Move behind a value."""
        if kind[:1] == "a":
            self.at = self.end(kind[1:])
        else:
            self.value(kind)


def _alignment(kind: str) -> int:
    return 8 if kind[:1] in _STRUCTURES else 1 if kind[:1] in ("v", "g") else SIZES.get(kind[:1], 4)


@cache
def parts(signature: str) -> tuple[str, ...]:
    """Return the types that stand one after the other in a signature."""
    found, start, depth = [], 0, 0
    for at, letter in enumerate(signature, 1):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0 and letter != "a":
            found.append(signature[start:at])
            start = at
    return tuple(found)


def head(whole: bytes, end: int) -> int:
    """Return the serial number of the call that a message answers; 0 if it answers none."""
    reader = Reader(whole, 16)
    while reader.at < end:
        reader.align(8)
        code, kind = reader.number(1), reader.text(1)
        value = reader.value(kind)
        if code == _REPLY_TO and isinstance(value, int):
            return value
    return 0


def message(path: str, interface: str, member: str, *texts: str) -> bytes:
    """Return a call of a method with texts as arguments; its serial number is 0."""
    body = b""
    for text in texts:
        body += bytes(-len(body) % 4) + _text(text)
    fields = b""
    for code, kind, value in ((_OBJECT, b"o", path), (_INTERFACE, b"s", interface), (_MEMBER, b"s", member)):
        fields += bytes(-len(fields) % 8) + bytes([code, 1]) + kind + b"\0" + _text(value)
    if texts:
        signature = bytes([len(texts)]) + b"s" * len(texts) + b"\0"
        fields += bytes(-len(fields) % 8) + bytes([_SIGNATURE, 1]) + b"g\0" + signature
    start = struct.pack("<cBBBIII", b"l", CALL, 0, 1, len(body), 0, len(fields))
    return start + fields + bytes(-len(fields) % 8) + body


def numbered(call: bytes, serial: int) -> bytes:
    """Return a call with its serial number."""
    return call[:8] + struct.pack("<I", serial) + call[12:]


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded + b"\0"
