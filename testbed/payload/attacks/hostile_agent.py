"""Takes the place of a guest's agent, and answers with whatever could harm the program that asks (DEV-03).

This is the only program of a throw-away guest, started by its initramfs. Each question chooses its answer by
its path. What was asked and what was done is on the console, which is a way that the agent's port has no
part in.
"""

from __future__ import annotations

import base64
import json
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Request = dict[str, object]

PORT = "org.qemu.guest_agent.0"
PREFIX = "/play/"  # of a path that chooses an answer: the prefix, its name, a slash, a token
FALSE, TRUE = 4242, 7  # process ids: of an answer that comes too late, and of a right one
DEPTH = 5000  # lists within one another
_PORTS = "/sys/class/virtio-ports"
_PIECE, _DROP = 2**16, 2**12  # octets of a write, and of one of a flood, which may wait long
_BLOCKED = 1.0  # seconds without progress after which a write is given up
OBJECTS = 800  # octets that libvirt needs for each empty object of an answer, at least
_HEARING = 20.0  # seconds without progress, of an answer that must become whole on a busy node
_FLOODING = 2.0  # seconds of a line without end; libvirt searches all of it with each KiB that comes
_SPACING = 1.0  # seconds between two octets of a slow answer
_NO_TEXT = b"\xff\xfe\xc0\x80"  # never in UTF-8 (RFC 3629, 3)
LAST = "flood"  # libvirt needs long for it
ENDLESS = ("slow", LAST)  # answers that never get whole
DOUBTFUL = ("number", "infinite", "deep", "line", "utf8")  # libvirt may give up the agent, by its version
_CLOSED = 1.2  # seconds: QEMU reports at most one change of a port in a second (VSERPORT_CHANGE)
_UNASKED = 0.6  # seconds without a question after which libvirt seems to have given up the agent
_EVENTS = 20  # before one answer, and as many answers to no question
_LATE = 2.5  # seconds of an answer that is too late for the question
_LASTING = 60.0  # seconds of an answer that never gets whole, unless another question comes


def serve(seconds: float) -> None:
    """Be the guest's agent.

    Args:
        seconds: for the whole.
    """
    Liar(port(_PORTS)).play(time.monotonic() + seconds)


def port(folder: str) -> str:
    """Return the device of the agent's port; wait for it."""
    while True:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            with open(f"{folder}/{name}/name", encoding="ascii") as file:
                if file.read().strip() == PORT:
                    return f"/dev/{name}"
        time.sleep(0.1)


def report(word: str) -> None:
    """Write a word to the console."""
    print(f"<{word}>", flush=True)


def words(token: str) -> str:
    """Return text that a terminal, a CI system, a log, a shell or a path would obey."""
    return (
        f"{token}\x1b]0;{token}\x07\x1b[31m\x9b1m\r\n::error::{token}\n##vso[task.complete]{token}\n"
        f"../../{token} $({token}) `{token}` \u202e{token} %s%n <b>{token}</b>,={token}"
    )


class Liar:
    """The hostile agent at its port."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting = b""
        self._chosen = ""  # the answer to the commands that follow
        self._token = ""
        self._doubted = False  # whether libvirt may have given up the agent
        self._port = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def play(self, end: float) -> None:
        """Answer until the end.

        Args:
            end: by the monotonic clock.
        """
        report("hostile")
        while time.monotonic() < end:
            now = time.monotonic()
            request = self.heard(min(end, now + _UNASKED) if self._doubted else end)
            if not request and self._doubted:
                self._reopen()
            self._doubted = False
            if request:
                self.answer(request)
        os.close(self._port)

    def heard(self, end: float) -> Request:
        """Return the next question; an empty one if there is none in time, or none that is JSON."""
        while b"\n" not in self._waiting:
            if time.monotonic() > end:
                return {}
            try:
                data = os.read(self._port, _PIECE)  # none while the other side is closed
            except BlockingIOError:
                data = b""
            if not data:
                time.sleep(0.02)
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\n")
        try:
            found = json.loads(line.lstrip(b"\xff"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def answer(self, request: Request) -> None:
        """Answer a question."""
        command, arguments = str(request.get("execute")), request.get("arguments") or {}
        assert isinstance(arguments, dict)
        if command.startswith("guest-sync"):
            self._synchronize(command, arguments.get("id"))
            return
        path = str(arguments.get("path", ""))
        if path.startswith(PREFIX):
            self._chosen, _, self._token = path[len(PREFIX) :].partition("/")
        elif command == "guest-get-host-name":
            self._chosen = "host-name"
        name = self._chosen
        report(f"heard {name}")
        if self._act(command):
            self._reopen()
        self._doubted = name in DOUBTFUL
        report(f"done {name}")

    def _synchronize(self, command: str, number: object) -> None:
        """Answer an attempt to synchronize: rightly, or once after silence with every wrong number."""
        if self._chosen != "silence":
            self._send({"return": number}, b"\xff" if command.endswith("delimited") else b"")
            return
        self._chosen = ""
        report("heard guest-sync")
        for wrong in (-1, 0, 2**63, "1", [number], {"id": number}, None):
            self._send({"return": wrong})
        report("done guest-sync")

    def _act(self, command: str) -> bool:
        """Give the chosen answer; return whether the port must be opened once more after it."""
        plain = {
            "silence": lambda: None,
            "late": self._late,
            "flood": self._flood,
            "slow": self._slow,
            "events": self._events,
            "objects": self._objects,
            "wide": lambda: self._send({"return": {"pid": 2**60}}),
            "deep": lambda: self._raw(b'{"return": ' + b"[" * DEPTH + b"]" * DEPTH + b"}\n"),
            "line": lambda: self._raw(_NO_TEXT + words(self._token).encode() + b"\n"),
            "utf8": lambda: self._raw(b'{"return": {"pid": "' + _NO_TEXT + self._octets() + b'"}}\n'),
            "number": lambda: self._raw(b'{"return": {"pid": ' + b"9" * 400 + b"}}\n"),
            "infinite": lambda: self._raw(b'{"return": {"pid": 1e999}}\n'),
        }
        if self._chosen in plain and command == "guest-exec":
            action: Callable[[], object] = plain[self._chosen]
            action()
            return self._chosen in ENDLESS
        self._send(self._formed(command))
        return False

    def _formed(self, command: str) -> Request:
        """Return an answer of the right form, whose content is hostile."""
        text = words(self._token)
        if self._chosen == "error" and command == "guest-exec":
            return {"error": {"class": text, "desc": text}}
        encoded = base64.b64encode(text.encode()).decode()
        return {
            "return": {
                "guest-exec": {"pid": TRUE},
                "guest-exec-status": {
                    "exited": self._chosen != "endless",
                    "exitcode": 2**40 if self._chosen == "status" else 0,
                    "out-data": encoded,
                    "err-data": encoded,
                },
                "guest-file-open": 1000,
                "guest-file-read": {"count": 2**40, "buf-b64": text},
                "guest-get-host-name": {"host-name": text},
            }.get(command, {})
        }

    def _octets(self) -> bytes:
        return self._token.encode()

    def _late(self) -> None:
        time.sleep(_LATE)
        self._send({"return": {"pid": FALSE}})

    def _slow(self) -> None:
        end = time.monotonic() + _LASTING
        self._raw(b'{"return": {"pid": \0' + self._octets())
        for octet in b"0" * int(_LASTING):
            self._raw(bytes((octet,)))
            if self.heard(time.monotonic() + _SPACING) or time.monotonic() > end:
                break

    def _events(self) -> None:
        for _ in range(_EVENTS):
            self._send({"event": self._token, "data": {"text": words(self._token)}})
            self._send({"return": {"pid": FALSE}, "id": 1, "event": "RESET"})
        self._send({"return": {"pid": TRUE}})

    def _flood(self) -> None:
        sent, end = 0, time.monotonic() + _FLOODING
        self._raw(b'{"return": {"pid": "')
        while time.monotonic() < end:
            sent += self._raw(b"a" * _DROP)
        report(f"sent {sent}")

    def _objects(self) -> None:
        """Answer with a number of objects, which is the token; libvirt needs `OBJECTS` octets for each."""
        number = int(self._token)
        self._raw(b'{"return": [' + b",".join([b"{}"] * number) + b"]}\n", _HEARING)

    def _send(self, answer: Request, before: bytes = b"") -> None:
        self._raw(before + json.dumps(answer).encode() + b"\n")

    def _raw(self, data: bytes, patience: float = 0.0) -> int:
        """Write octets; return how many were taken before the other side took none for a while.

        Args:
            patience: seconds of that while, at least.
        """
        patience = patience or _BLOCKED
        view, end = memoryview(data), time.monotonic() + patience
        poll = select.poll()
        poll.register(self._port, select.POLLOUT)
        while view and time.monotonic() < end:
            try:
                view = view[os.write(self._port, view[:_PIECE]) :]
            except BlockingIOError:
                poll.poll(100)
            except OSError:  # the other side has closed
                time.sleep(0.1)
            else:
                end = time.monotonic() + patience
        return len(data) - len(view)

    def _reopen(self) -> None:
        """Close the port and open it once more, so that libvirt begins from the beginning."""
        os.close(self._port)
        self._waiting = b""
        time.sleep(_CLOSED)
        self._port = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
