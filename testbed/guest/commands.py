"""Runs commands for one ssh session, several at a time: JSON lines in, JSON lines out; sent to machines of the lab.

A login, sudo and PAM cost ten times what a small command costs under emulation; so they are paid once per
session. Stands alone: one file, standard library only. Every command has a deadline and bounded output.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any


def _keep(stream: IO[bytes], limit: int, into: bytearray) -> None:
    while data := stream.read1(65536):  # type: ignore[attr-defined]
        into.extend(data[: max(0, limit - len(into))])


def _feed(stream: IO[bytes], data: bytes) -> None:
    try:
        stream.write(data)
        stream.close()
    except BrokenPipeError:
        pass


def execute(command: str, stdin: bytes, timeout: float, limit: int) -> dict[str, Any]:
    """Run a shell command; it and what it started in its group are killed after ``timeout`` seconds.

    Returns:
        ``status``, ``out`` and ``err`` (base64, at most ``limit`` bytes of each); or ``late``: true.
    """
    end = time.monotonic() + timeout
    process = subprocess.Popen(  # noqa: S603 - running commands is what it is for
        ["/bin/sh", "-c", command], start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = bytearray(), bytearray()
    helpers = [
        threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True),
        threading.Thread(target=_keep, args=(process.stdout, limit, out), daemon=True),
        threading.Thread(target=_keep, args=(process.stderr, limit, err), daemon=True),
    ]
    for helper in helpers:
        helper.start()
    try:
        for helper in helpers[1:]:
            helper.join(max(0.0, end - time.monotonic()))
            if helper.is_alive():
                raise subprocess.TimeoutExpired(command, timeout)
        status = process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return {"late": True}
    shown = status if status >= 0 else 128 - status  # as a shell tells of a signal
    return {"status": shown, "out": base64.b64encode(out).decode(), "err": base64.b64encode(err).decode()}


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more; whoever closes the session leaves running commands to end by themselves."""
    lock = threading.Lock()

    def answer(request: dict[str, Any]) -> None:
        try:
            stdin = base64.b64decode(request["stdin"])
            found = execute(request["command"], stdin, request["timeout"], request["limit"])
        except OSError as error:
            found = {"status": 126, "out": "", "err": base64.b64encode(str(error).encode()).decode()}
        with lock:
            answers.write(json.dumps({"id": request["id"], **found}).encode() + b"\n")
            answers.flush()

    for line in requests:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
