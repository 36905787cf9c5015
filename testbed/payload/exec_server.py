"""Runs commands, and carries streams to UNIX sockets, for one ssh session, several at a time; sent to
machines of the lab.

A login, sudo and PAM cost ten times what a small command costs under emulation; so they are paid once per
session. Stands alone: one file, and of the standard library only what an emulated machine reads in no time. A
message is a line of words, and as many octets behind it as the line says. Requests, and the answers to them:

    run NUMBER SECONDS LIMIT COMMAND INPUT   length of each; of an output, LIMIT octets are kept
    open NUMBER PATH                         a stream to a UNIX socket, by the length of its path
    data NUMBER OCTETS                       of a stream; none ends it

    done NUMBER STATUS OUTPUT ERRORS         status as a shell tells it; length of each
    late NUMBER                              the command did not end in time; it was killed, and what it had
    started data NUMBER OCTETS                       of a stream; none: it has ended

When the requests end while commands run, nobody waits for them any more: they have some seconds to end by
themselves, and are killed then. Meanwhile a lock on a file tells other sessions, which change what these
commands change, to wait.
"""

from __future__ import annotations

import _socket as socket
import fcntl
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE = 65536  # octets
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25  # signal(7)
_CANNOT_RUN = 126  # what a shell tells of a command that it cannot start
ORPHANS = "/run/testbed-orphans"  # locked while commands run whose session has ended
GRACE = 10.0  # seconds that they may take


class Watch:
    """Open files, and what is called when one is ready. Who closes a file forgets its number, which the next
    one may have.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._calls: dict[int, Callable[[int], object]] = {}

    def add(self, file: int, events: int, call: Callable[[int], object]) -> None:
        """Watch a file for events of poll(2)."""
        self._poll.register(file, events)
        self._calls[file] = call

    def want(self, file: int, events: int) -> None:
        """Watch a file for other events."""
        self._poll.modify(file, events)

    def close(self, file: int) -> None:
        """Close a file."""
        del self._calls[file]
        self._poll.unregister(file)
        os.close(file)

    def serve(self, seconds: float | None) -> None:
        """Wait until a file is ready, but not for longer than this, and call what is to be called."""
        for file, events in self._poll.poll(None if seconds is None else max(0.0, seconds) * 1000):
            self._calls[file](events)


class Command:
    """A shell command that runs, what it is told, and what it tells.

    Raises:
        OSError: it cannot be started.

    """

    def __init__(self, watch: Watch, text: bytes, told: bytes, limit: int) -> None:
        self.out, self.err = bytearray(), bytearray()
        self._watch, self._told, self._limit = watch, memoryview(told), limit
        pipes = (their_in, told_by), (out, their_out), (err, their_err) = [os.pipe() for _ in range(3)]
        try:
            self._pid = os.posix_spawn(
                "/bin/sh",
                [b"sh", b"-c", text],
                os.environ,
                setsid=True,
                setsigdef=(_SIGPIPE, _SIGXFSZ),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, file, number)
                    for number, file in enumerate((their_in, their_out, their_err))
                ],
            )
        except OSError:
            for file in (file for pipe in pipes for file in pipe):
                os.close(file)
            raise
        for file in (their_in, their_out, their_err):
            os.close(file)
        os.set_blocking(told_by, False)
        self._process = os.pidfd_open(self._pid)
        self._told_by: int | None = told_by
        self._open = {out, err, self._process}
        watch.add(told_by, select.POLLOUT, lambda _: self._tell(told_by))
        watch.add(out, select.POLLIN, lambda _: self._hear(out, self.out))
        watch.add(err, select.POLLIN, lambda _: self._hear(err, self.err))
        watch.add(self._process, select.POLLIN, lambda _: self._leave(self._process))

    def _tell(self, file: int) -> None:
        try:
            self._told = self._told[os.write(file, self._told[:_PIECE]) :]
        except BrokenPipeError:
            self._told = self._told[:0]
        if not self._told:
            self._told_by = None
            self._watch.close(file)

    def _hear(self, file: int, kept: bytearray) -> None:
        data = os.read(file, _PIECE)
        kept += data[: self._limit - len(kept)]
        if not data:
            self._leave(file)

    def _leave(self, file: int) -> None:
        self._open.discard(file)
        self._watch.close(file)

    @property
    def ended(self) -> bool:
        """Whether it has ended, and tells nothing more; what it was told and has not read does not count."""
        return not self._open

    def status(self) -> int:
        """Return the status of a command that has ended."""
        self._let_go()
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return code if code >= 0 else 128 - code

    def kill(self) -> None:
        """End it, and what it has started in its session."""
        os.killpg(self._pid, _SIGKILL)
        os.waitpid(self._pid, 0)
        self._let_go()

    def _let_go(self) -> None:
        for file in (*self._open, *([] if self._told_by is None else [self._told_by])):
            self._leave(file)


class Stream:
    """A connection to a UNIX socket of the machine.

    Args:
        hand_on: is given what is read; nothing when the other side has ended it.

    Raises:
        OSError: nobody listens there.

    """

    def __init__(self, watch: Watch, path: bytes, hand_on: Callable[[bytes], None]) -> None:
        self._watch, self._hand_on = watch, hand_on
        self._waiting, self._last = b"", False
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(path)
        self._file: int | None = connection.detach()
        os.set_blocking(self._file, False)
        watch.add(self._file, select.POLLIN, self._ready)

    def send(self, data: bytes) -> None:
        """Write to it as soon as possible; nothing ends it, after what was written before."""
        self._waiting += data
        self._last = self._last or not data
        if self._file is not None:
            self._watch.want(self._file, select.POLLIN | select.POLLOUT)

    def _ready(self, events: int) -> None:
        assert self._file is not None
        ended = bool(events & ~select.POLLOUT) and not self._read(self._file)
        if events & select.POLLOUT:
            self._write(self._file)
        if ended or (self._last and not self._waiting):
            self._watch.close(self._file)
            self._file = None
        elif not self._waiting:
            self._watch.want(self._file, select.POLLIN)

    def _read(self, file: int) -> bytes:
        try:
            data = os.read(file, _PIECE)
        except OSError:
            data = b""
        self._hand_on(data)
        return data

    def _write(self, file: int) -> None:
        try:
            self._waiting = self._waiting[os.write(file, self._waiting[:_PIECE]) :]
        except OSError:
            self._waiting = b""  # nobody reads any more; what was written to us before is still read


class Server:
    """Answers the requests that come in by one file, and writes to another, until there are no more."""

    def __init__(self, requests: int, answers: int, orphans: str = ORPHANS, grace: float = GRACE) -> None:
        self._answers, self._come = answers, bytearray()
        self._orphans, self._grace = orphans, grace
        self._watch, self._open = Watch(), True
        self._commands: dict[bytes, tuple[float, Command]] = {}
        self._streams: dict[bytes, Stream] = {}
        self._watch.add(requests, select.POLLIN, lambda _: self._read(requests))

    def serve(self) -> None:
        """Do it; who ends the requests leaves running commands some seconds to end by themselves."""
        self._turn(lambda: self._open)
        if self._commands:
            fcntl.flock(os.open(self._orphans, os.O_WRONLY | os.O_CREAT, 0o600), fcntl.LOCK_SH)
            end = time.monotonic() + self._grace
            self._commands = {
                number: (min(end, late), command) for number, (late, command) in self._commands.items()
            }
            self._answers = os.open(os.devnull, os.O_WRONLY)  # who would read them is gone
            for stream in self._streams.values():
                stream.send(b"")
            self._turn(lambda: bool(self._commands))

    def _turn(self, go_on: Callable[[], bool]) -> None:
        """Watch, and answer for commands that have ended or are late."""
        while go_on():
            ends = [end for end, _ in self._commands.values()]
            self._watch.serve(min(ends) - time.monotonic() if ends else None)
            for number, (end, command) in list(self._commands.items()):
                if command.ended:
                    self._answer(b"done %b %d" % (number, command.status()), command.out, command.err)
                elif time.monotonic() > end:
                    command.kill()
                    self._answer(b"late %b" % number)
                else:
                    continue
                del self._commands[number]

    def _read(self, file: int) -> None:
        data = os.read(file, _PIECE)
        self._come += data
        if not data:
            self._open = False
            self._watch.close(file)
        while (end := self._come.find(b"\n") + 1) > 0:
            kind, number, *words = bytes(self._come[:end]).split()
            *limits, first, second = [*words, b"0"] if kind != b"run" else words
            middle = end + int(first)
            behind = middle + int(second)
            if len(self._come) < behind:
                return
            self._take(kind, number, limits, bytes(self._come[end:middle]), bytes(self._come[middle:behind]))
            del self._come[:behind]

    def _take(self, kind: bytes, number: bytes, limits: list[bytes], first: bytes, second: bytes) -> None:
        if kind == b"run":
            seconds, limit = limits
            self._run(number, float(seconds), int(limit), first, second)
        elif kind == b"open":
            self._connect(number, first)
        elif number in self._streams:
            self._streams[number].send(first)

    def _run(self, number: bytes, seconds: float, limit: int, text: bytes, told: bytes) -> None:
        try:
            self._commands[number] = time.monotonic() + seconds, Command(self._watch, text, told, limit)
        except OSError as error:
            self._answer(b"done %b %d" % (number, _CANNOT_RUN), b"", str(error).encode())

    def _connect(self, number: bytes, path: bytes) -> None:
        try:
            self._streams[number] = Stream(
                self._watch, path, lambda data: self._answer(b"data %b" % number, data)
            )
        except OSError:
            self._answer(b"data %b" % number, b"")

    def _answer(self, start: bytes, *parts: bytes | bytearray) -> None:
        sizes = b"".join(b" %d" % len(part) for part in parts)
        left = memoryview(b"".join((start, sizes, b"\n", *parts)))
        while left:
            try:
                left = left[os.write(self._answers, left) :]
            except BrokenPipeError:  # who asked is gone
                self._open = False
                return


if __name__ == "__main__":
    Server(0, 1).serve()
