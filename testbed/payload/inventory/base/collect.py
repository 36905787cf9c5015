"""Collects records of a machine's state: JSON objects, bounded, in a fixed order.

A record has a domain, a key and a value. A place that cannot be read becomes a record of the domain `UNREAD`.
A collector that hangs is stopped with its process, and becomes such a record too.
"""

from __future__ import annotations

import json
import marshal
import os
import re
import select
import signal
import time
from collections.abc import Callable

UNREAD = "unread"
RECORDS = 60_000  # of one machine
VALUE = 40_000  # characters of one value
KEY = 1_000  # characters
TOTAL = 24 * 2**20  # characters of all records
_PIECE = 65536
_SETTING = 4096  # octets of nearly every setting; the kernel clears as much memory as it is asked for
_QUOTED = json.encoder.encode_basestring_ascii
# `json.JSONEncoder(sort_keys=True, separators=(",", ":"))` makes it for each value, which takes longest.
_ENCODER = json.encoder.c_make_encoder(None, None, _QUOTED, None, ":", ",", True, False, True)  # type: ignore[attr-defined]
_SECRET = re.compile(
    r"(?i)((?:^|[^a-z])(?:pass(?:word|phrase|wd)?|secret|token|psk|preshared[_-]?key|stable_secret)"
    r"\s*[=: ]\s*)(\S+)"
)

Found = dict[str, object]


class Unread(Exception):  # noqa: N818 - a fact about the machine
    """Something could not be read; its text is the reason.

    Args:
        output: what could be read of it.

    """

    def __init__(self, why: str, output: str = "") -> None:
        super().__init__(why)
        self.output = output


class Records:
    """Records of one collector."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []  # domain, key, value as JSON
        self.size = 0

    def add(self, domain: str, key: str, value: object = True) -> None:
        """Add a record; one that is too long keeps its beginning and its length."""
        text = _encoded(value)
        if len(text) > VALUE:
            text = json.dumps({"cut": text[:VALUE], "length": len(text)})
        self._append(domain, printable(key)[:KEY], text)

    def unread(self, domain: str, place: str, why: object) -> None:
        """Record that a place of a domain could not be read."""
        self._append(UNREAD, printable(f"{domain} {place}")[:KEY], json.dumps(str(why)[:400]))

    def _append(self, domain: str, key: str, value: str) -> None:
        self.size += len(domain) + len(key) + len(value)
        if len(self.lines) < RECORDS and self.size < TOTAL:
            self.lines.append((domain, key, value))
        elif self.lines[-1][1] != "records of this machine":
            self.lines.append((UNREAD, "records of this machine", '"there are too many of them"'))

    def sorted(self) -> list[str]:
        """Return records as lines; those with the same key are numbered in order of their values."""
        printed, last, number = [], ("", ""), 1
        for domain, key, value in sorted(self.lines):
            number = number + 1 if (domain, key) == last else 1
            last = (domain, key)
            name = _QUOTED(key if number == 1 else f"{key} #{number}")
            printed.append(f'{{"domain":{_QUOTED(domain)},"key":{name},"value":{value}}}')
        return printed


def _encoded(value: object) -> str:
    return _QUOTED(value) if isinstance(value, str) else "".join(_ENCODER(value, 0))


def printable(text: str) -> str:
    """Return text without halves of characters, which are octets of a file's name."""
    if text.isascii():
        return text
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def read(path: str, limit: int = 2**20) -> str:
    """Return the text of a file of bounded size.

    Raises:
        Unread: it cannot be read.

    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            data = bytearray()
            while len(data) < limit and (piece := os.read(file, min(_PIECE, limit - len(data)))):
                data += piece
        finally:
            os.close(file)
    except OSError as error:
        raise Unread(error.strerror or str(error)) from error
    return data.decode(errors="backslashreplace")


def setting(path: str) -> str:
    """Return the text of a setting, which the kernel hands out in one piece; half the calls of `read`.

    Raises:
        Unread: it cannot be read, or is longer than 65,536 octets.

    """
    try:
        for size in (_SETTING, _PIECE):
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            try:
                data = os.read(file, size)
            finally:
                os.close(file)
            if len(data) < size:
                return data.decode(errors="backslashreplace")
    except OSError as error:
        raise Unread(error.strerror or str(error)) from error
    raise Unread(f"it has more than {_PIECE} octets")


def masked(text: str) -> str:
    """Return a text without the values of words that name a secret."""
    return _SECRET.sub(lambda found: f"{found[1]}(masked)", text)


Collector = Callable[[Records], None]


class Child:
    """A collector in a process of its own, which a hang cannot spread from.

    Args:
        seconds: after which it is stopped.

    """

    def __init__(self, name: str, collector: Collector, seconds: float) -> None:
        self.name, self.seconds, self.data = name, seconds, bytearray()
        self.end = time.monotonic() + seconds
        self.file, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.file)
            _collect(name, collector, write)
        os.close(write)

    def finish(self, records: Records, why: str = "") -> None:
        """Take over what it has collected, once it has ended or must end."""
        os.close(self.file)
        if why:
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if not why and not status:
            records.lines += marshal.loads(self.data)  # noqa: S302 - from a fork of this process
        else:
            records.unread(self.name, "", why or f"it ended with status {status}")


def _collect(name: str, collector: Collector, file: int) -> None:
    """Run a collector in a child process, and end it; its records go to the parent."""
    own = Records()
    try:
        collector(own)
    except Exception as error:  # noqa: BLE001 - one place that is not as expected must not hide the others
        own.unread(name, "", f"{type(error).__name__}: {error}")
    left = memoryview(marshal.dumps(own.lines))
    try:
        while left:
            left = left[os.write(file, left) :]
        os._exit(0)
    finally:
        os._exit(1)


def side_by_side(collectors: dict[str, Collector], records: Records, seconds: float, whole: float) -> None:
    """Run collectors in processes of their own, until all have ended or a timeout.

    A few run at once: while one waits for a server, another computes. More would only take each other's time,
    and an emulated CPU loses its translated addresses with each change of the process.

    Args:
        seconds: that each may take.
        whole: seconds that all may take.

    """
    end, at_once = time.monotonic() + whole, (os.cpu_count() or 1) + 1
    waiting, children, poll = list(collectors.items()), dict[int, Child](), select.poll()
    while waiting or children:
        while waiting and len(children) < at_once:
            name, run = waiting.pop(0)
            child = Child(name, run, max(0.0, min(seconds, end - time.monotonic())))
            children[child.file] = child
            poll.register(child.file, select.POLLIN)
        first = min(child.end for child in children.values())
        for file, _ in poll.poll(max(0.0, first - time.monotonic()) * 1000):
            piece = os.read(file, _PIECE)
            children[file].data += piece
            if not piece or len(children[file].data) > TOTAL:
                poll.unregister(file)
                children.pop(file).finish(records, "" if not piece else "it prints too much")
        for file in [file for file, child in children.items() if time.monotonic() >= child.end]:
            poll.unregister(file)
            child = children.pop(file)
            child.finish(records, f"not done within {child.seconds:.0f} s")
