"""The client of a machine's command session.

The server is `testbed.payload.exec_server`; its docstring describes the messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from testbed import timeouts

PROGRAM = (Path(__file__).parents[2] / "payload/exec_server.py").read_bytes()
# Bootstrap passed to `python3 -c`: reads the program from standard input and executes it. It is short because
# sudo writes the command line into the machine's log.
BEGIN = (
    f"import os;p=b''\nwhile len(p)<{len(PROGRAM)}:p+=os.read(0,{len(PROGRAM)}-len(p))or os._exit(1)\nexec(p)"
)
LIMIT = 4 * 2**20  # bytes kept of each output stream
_LINE = 100  # bytes
_UNREAD = 64 * 2**20  # unread bytes of one stream; libvirt's longest message has half of it
_GRACE = timeouts.SESSION_ANSWER


@dataclass(frozen=True, slots=True)
class Completed:
    """Result of a command.

    Output is cut at the limit. Status 128 + n means signal n, as in a shell.
    """

    command: str
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, with undecodable bytes replaced."""
        return self.stdout.decode(errors="replace")


@contextmanager
def closing_after(seconds: float, close: Callable[[], object]) -> Iterator[None]:
    """Call a function if the block lasts longer than a time.

    This is for calls that have no timeout, but end when the connection that they use is closed.

    Args:
        seconds: the time.
        close: closes the connection; runs in another thread.

    """
    timer = threading.Timer(seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class SessionStream:
    """A connection to a UNIX socket of the machine, with methods of a socket.

    It ends with its session.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._read: SimpleQueue[bytes] = SimpleQueue()
        self._ended = False
        self._come, self._gone = 0, 0  # bytes; each is counted by one thread only

    def arrived(self, data: bytes) -> None:
        """Queue data from the machine; empty data ends the connection.

        Raises:
            EOFError: too much data waits to be read.

        """
        self._come += len(data)
        if self._come - self._gone > _UNREAD:
            self._read.put(b"")
            raise EOFError("a machine floods a connection")
        self._read.put(data)

    def recv(self, _: int) -> bytes:
        """Wait for data from the machine and return it, whatever its length; empty at the end."""
        data = b"" if self._ended else self._read.get()
        self._gone += len(data)
        self._ended = self._ended or not data
        return data

    def sendall(self, data: bytes) -> None:
        """Send data to the machine.

        Raises:
            EOFError: the session has ended.

        """
        self._write(data)

    def close(self) -> None:
        """End the connection; a thread that waits in `recv` gets empty data.

        Raises:
            EOFError: the session has ended.

        """
        self._read.put(b"")
        self._write(b"")


class Session:
    """Commands and streams, multiplexed over one pair of streams.

    Several threads may use it at the same time. It cannot be used again after the server has ended.

    Args:
        write: sends octets to the server.
        answers: octets from the server.
        close: closes both streams; this also ends a `write` that waits because the server does not read.

    """

    def __init__(
        self, write: Callable[[bytes], object], answers: IO[bytes], close: Callable[[], object] = lambda: None
    ) -> None:
        self._write, self._close = write, close
        self._answers = answers
        self._lock = threading.Lock()
        self._numbers = count()
        self._waiting: dict[int, Future[tuple[int, bytes, bytes] | None]] = {}
        self._streams: dict[int, SessionStream] = {}
        self._alive = True
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the session has not ended yet, as far as is known."""
        return self._alive

    def run(self, command: str, *, stdin: bytes, timeout: float) -> Completed:
        """Run a shell command.

        Args:
            command: the command.
            stdin: its standard input.
            timeout: seconds until it must have ended.

        Raises:
            EOFError: the session has ended, or the server sent an invalid message.
            TimeoutError: the command did not end in time.

        """
        future: Future[tuple[int, bytes, bytes] | None] = Future()
        number, text = next(self._numbers), command.encode()
        with self._lock:
            self._waiting[number] = future
        with closing_after(timeout + _GRACE, self._close):
            self._send(f"run {number} {timeout} {LIMIT} {len(text)} {len(stdin)}", text, stdin)
        try:
            answer = future.result(timeout + _GRACE)
        except Late:
            self._end()
            answer = None
        if answer is None:
            raise TimeoutError(f"no end within {timeout:.0f} s")
        return Completed(command, *answer)

    def open(self, path: str) -> SessionStream:
        """Return a connection to a UNIX socket of the machine.

        The connection ends at once if no process listens on the socket.

        Raises:
            EOFError: the session has ended.

        """
        number, name = next(self._numbers), path.encode()
        stream = SessionStream(lambda data: self._send(f"data {number} {len(data)}", data))
        with self._lock:
            self._streams[number] = stream
        self._send(f"open {number} {len(name)}", name)
        return stream

    def _send(self, line: str, *parts: bytes) -> None:
        with self._lock:
            if not self._alive:
                raise EOFError("the session has ended")
            self._write(b"".join((line.encode(), b"\n", *parts)))

    def _listen(self) -> None:
        try:
            while line := self._answers.readline(_LINE):
                self._take(line)
        except (OSError, EOFError, ValueError, LookupError, TypeError):
            pass  # after an invalid message, the position in the stream is unknown
        self._end()

    def _take(self, line: bytes) -> None:
        kind, *words = line.split()
        number, *numbers = map(int, words)
        if kind == b"done":
            status, *sizes = numbers
            out, err = (self._octets(size) for size in sizes)
            self._waiting.pop(number).set_result((status, out, err))
        elif kind == b"late":
            self._waiting.pop(number).set_result(None)
        else:
            self._streams[number].arrived(self._octets(*numbers))

    def _octets(self, size: int) -> bytes:
        data = self._answers.read(size) if 0 <= size <= LIMIT else b""
        if len(data) != size:
            raise EOFError(f"{len(data)} of {size} octets")
        return data

    def _end(self) -> None:
        with self._lock:
            self._alive = False
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(EOFError("the session has ended"))
        for stream in list(self._streams.values()):
            stream.arrived(b"")
