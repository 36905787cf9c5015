"""Observer and sender inside a guest or on a machine: started once, then asked through a pipe (NET-01 to
NET-13).

Runs as root, on the standard library only; `testbed.verify.probe.client.compose` puts its files into one
program. Starting an interpreter costs a nested guest seconds, so the process stays between observations, in
which it has nothing open but its pipe, and ends by itself when nobody asks any more. Each question is a line
(`testbed.payload.probe.wire`); its answer goes into a pipe that the asker has made, or else into a file.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import selectors
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from testbed.payload.probe import scanner, sender, wire
from testbed.payload.probe.recorder import MAX_TEXT, Recorder
from testbed.payload.probe.tap_recorder import TapRecorder

MAX_REQUEST = 8 * 2**20
_PREFIX = re.compile(r"tb-[a-z0-9]{4,32}-")
_ANSWER = re.compile(r"[a-z0-9]{4,32}")
_UNREAD, _KEPT = 60, 600  # seconds that an answer waits for its reader in a pipe, and in a file
_SENDERS = {
    "send": sender.send,
    "stream": sender.stream,
    "hold": sender.hold,
    "knock": scanner.knock,
    "beat": scanner.beat,
}
# Files that tell a sender to go on in another way.
_SIGNALS = {"send": (), "stream": ("halt",), "hold": ("turn", "release"), "knock": (), "beat": ("rest",)}
_NOTHING = {"error": "nothing is being recorded for this run", "alive": False}
Request = dict[str, Any]


class Server:
    """Answers requests one after another, and turns the recorder in between."""

    def __init__(self, folder: Path, patience: float, lock: IO[str]) -> None:
        self.folder, self.patience, self.lock = folder, patience, lock
        self.selector = selectors.DefaultSelector()
        self.pipe = os.open(folder / "in", os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self.pipe, fcntl.F_SETPIPE_SZ, 2**20)  # for who writes without waiting
        self.selector.register(self.pipe, selectors.EVENT_READ, self.read)
        self.text, self.ending = b"", False
        self.recorder: Recorder | TapRecorder | None = None
        self.answers: dict[Path, float] = {}
        self.asked = time.monotonic()
        self.phases = {
            "listen": self._listen, "glance": self._glance, "finish": self._finish, "stop": self._stop,
            **{name: self._signal for names in _SIGNALS.values() for name in names},
        }  # fmt: skip

    def run(self) -> None:
        """Work until told to stop, or until nobody has asked for long."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while not self.ending and time.monotonic() < self.asked + self.patience:
            self.turn()
            if self.recorder is not None:
                self.recorder.expire()
            for path in [path for path, end in self.answers.items() if end < time.monotonic()]:
                del self.answers[path]
                path.unlink(missing_ok=True)

    def turn(self) -> None:
        """Do what is ready; what is done for one may have closed another that was ready as well."""
        for key, _ in self.selector.select(0.5):
            if self.selector.get_map().get(key.fd) == key:
                key.data(key.fileobj)

    def read(self, pipe: int) -> None:
        """Take what has come in, and answer every line that is complete."""
        self.text += os.read(pipe, 65536)
        *lines, self.text = self.text.split(b"\n")
        if len(self.text) > MAX_REQUEST:
            self.text = b""
        for line in lines:
            self.asked = time.monotonic()
            with suppress(OSError, ValueError, KeyError, TypeError):
                request = wire.unpack(line)
                reply = self.reply_to(request)
                if "answer" in request:
                    self.answer(str(request["answer"]), reply, slow=request["phase"] in _SENDERS)

    def reply_to(self, request: Request) -> Callable[[], Request]:
        """Do what must be done in this process; return what the answering process does."""
        phase = str(request["phase"])
        if phase in _SENDERS:
            for name in _SIGNALS[phase]:
                (self.folder / name).unlink(missing_ok=True)
                request[name] = str(self.folder / name)
            return lambda: _SENDERS[phase](request)
        try:
            reply = self.phases[phase](request)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reply = {"error": repr(error)[:MAX_TEXT]}
        return lambda: reply

    def _listen(self, request: Request) -> Request:
        """Record what comes in by interfaces of this machine, or what goes out to its guests by taps."""
        self._finish(request)
        prefix = _prefix(request)
        if "taps" in request:
            self.recorder = TapRecorder(prefix, request["taps"], self.selector)
        else:
            self.recorder = Recorder(prefix, request["interfaces"], self.selector)
        return self.recorder.prepare(request)

    def _current(self, request: Request) -> Recorder | TapRecorder | None:
        """Return the recorder of the run that a request is about, if it is recorded."""
        return (
            self.recorder if self.recorder is not None and self.recorder.prefix == _prefix(request) else None
        )

    def _glance(self, request: Request) -> Request:
        """Tell which tokens have come in so far."""
        current = self._current(request)
        return (
            {"seen": sorted(token for token in current.tokens() if token.startswith(current.prefix))}
            if current
            else dict(_NOTHING)
        )

    def _finish(self, request: Request) -> Request:
        current = self._current(request)
        if current:
            current.hear(request.get("awaited", []), float(request.get("patience", 0)))
        state = current.state() if current else dict(_NOTHING)
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
        return state

    def _signal(self, request: Request) -> Request:
        (self.folder / str(request["phase"])).touch()
        return {"signalled": True}

    def _stop(self, _: Request) -> Request:
        self.ending = True
        return {"stopped": True}

    def answer(self, name: str, reply: Callable[[], Request], *, slow: bool) -> None:
        """Give an answer; where it takes time, or a pipe waits for it, in a process of its own, so that the
        recorder goes on.
        """
        if not _ANSWER.fullmatch(name):
            return
        path = self.folder / f"answer.{name}"
        self.answers[path] = time.monotonic() + _KEPT
        if not slow and not path.exists():
            self._write(path, reply)
        elif not os.fork():
            try:
                self.lock.close()
                self._write(path, reply)
            finally:
                os._exit(0)

    def _write(self, path: Path, reply: Callable[[], Request]) -> None:
        try:
            text = wire.pack(reply())
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = wire.pack({"error": repr(error)[:MAX_TEXT]})
        if path.exists():
            signal.alarm(_UNREAD)
            with path.open("wb") as pipe:
                path.unlink()
                pipe.write(text)
        else:
            part = path.with_name(f"part.{path.name}")
            part.write_bytes(text)
            part.rename(path)


def _prefix(request: Request) -> str:
    prefix = str(request["token"])
    if not _PREFIX.fullmatch(prefix):
        msg = f"{prefix!r} is no token of a run"
        raise ValueError(msg)
    return prefix


def start(request: Request) -> Request:
    """Start the process that outlives this program, in place of any that runs; return its id."""
    stop(request)
    folder = Path(request["folder"])
    folder.mkdir(mode=0o700, parents=True)
    os.mkfifo(folder / "in", 0o600)
    inside, outside = os.pipe()
    if os.fork() == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _serve(folder, min(float(request["patience"]), 3600.0), outside)
        finally:
            os._exit(0)
    os.close(outside)
    with os.fdopen(inside, "rb") as pipe:
        ready = select.select([pipe], [], [], 30)[0]
        pid = int((ready and pipe.read()) or 0)
    return {"started": pid > 0, "pid": pid}


def _serve(folder: Path, patience: float, pipe: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    lock = (folder / "pid").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(str(os.getpid()))
    lock.flush()
    server = Server(folder, patience, lock)
    os.write(pipe, str(os.getpid()).encode())
    os.close(pipe)
    try:
        server.run()
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)  # SIGCHLD is ignored, so this returns when the last answer has been read
    finally:
        _forget(folder)


def _forget(folder: Path) -> None:
    """Remove the folder, which is flat; `shutil` would cost a nested guest as much as all the rest that is
    imported.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            path.unlink(missing_ok=True)
        folder.rmdir()


def _running(folder: Path) -> bool:
    """Tell whether the process runs: it holds the lock on its file for as long as it lives."""
    with suppress(FileNotFoundError), (folder / "pid").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def stop(request: Request) -> Request:
    """End the process and those that it has sending, if its lock says that it runs, and forget what it has
    seen.
    """
    folder, stopped = Path(request["folder"]), False
    with suppress(FileNotFoundError, ProcessLookupError):
        if _running(folder):
            pid = int((folder / "pid").read_text())
            process = os.pidfd_open(pid)
            os.killpg(os.getpgid(pid), signal.SIGKILL)
            stopped = bool(select.select([process], [], [], 10)[0])
    _forget(folder)
    return {"stopped": stopped}


def main(request: Request) -> int:
    """Start or stop the process, and print what came of it."""
    try:
        answer, status = {"start": start, "stop": stop}[request["phase"]](request), 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        answer, status = {"error": repr(error)[:MAX_TEXT]}, 1
    print(json.dumps(answer))
    return status
