"""The near end of a machine's command session; the far end is `testbed.guest.commands`."""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

PROGRAM = (Path(__file__).parents[1] / "guest/commands.py").read_text()
LIMIT = 4 * 2**20  # bytes kept of each output stream
_LINE = 4 * LIMIT
_GRACE = 20.0  # seconds beyond a command's own deadline that its answer may take to arrive


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command gave back; output is cut at the limit. 128 + n stands for signal n, as in a shell."""

    command: str
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, with undecodable bytes replaced."""
        return self.stdout.decode(errors="replace")


class Session:
    """Commands over one pair of streams. Safe to use from several threads; useless once its far end is gone."""

    def __init__(self, write: Callable[[bytes], object], answers: IO[bytes]) -> None:
        self._write = write
        self._answers = answers
        self._lock = threading.Lock()
        self._numbers = count()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._alive = True
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the far end was there when it was last heard of."""
        return self._alive

    def run(self, command: str, *, stdin: bytes, timeout: float) -> Completed:
        """Run a shell command.

        Args:
            timeout: seconds until it must have ended.

        Raises:
            EOFError: the far end is gone, or talks nonsense.
            TimeoutError: the command did not end in time.

        """
        request = {"command": command, "stdin": base64.b64encode(stdin).decode(), "timeout": timeout, "limit": LIMIT}
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if not self._alive:
                raise EOFError("the session has ended")
            number = next(self._numbers)
            self._waiting[number] = future
            self._write(json.dumps({"id": number, **request}).encode() + b"\n")
        try:
            answer = future.result(timeout + _GRACE)
        except Late:
            self._end()
            raise TimeoutError(f"no end within {timeout:.0f} s") from None
        if answer.get("late"):
            raise TimeoutError(f"no end within {timeout:.0f} s")
        try:
            return Completed(command, int(answer["status"]), base64.b64decode(answer["out"]), base64.b64decode(answer["err"]))
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise EOFError(f"an answer makes no sense: {error!r}") from error

    def _listen(self) -> None:
        try:
            while line := self._answers.readline(_LINE):
                answer = json.loads(line)
                waiting = self._waiting.pop(answer["id"], None)
                if waiting is not None:
                    waiting.set_result(answer)
        except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError):
            pass  # whatever it was, nothing that comes after it can be trusted
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._alive = False
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(EOFError("the session has ended"))
