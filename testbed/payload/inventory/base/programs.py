"""Runs the machine's own tools, bounded in time and output."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from testbed.payload.inventory.base.collect import Unread

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS = 45.0  # of one program, where a machine has a small share of a busy CPU
LIMIT = 8 * 2**20  # octets of output
_PIECE = 65536


def run(
    argv: Sequence[str],
    stdin: str = "",
    seconds: float = SECONDS,
    *,
    complaints: list[str] | None = None,
) -> str:
    """Run a program and return what it printed.

    Args:
        complaints: takes the lines of its other output; what it printed counts then whatever its status is.

    Raises:
        Unread: it is missing, fails, hangs or prints too much.

    """
    program = shutil.which(argv[0], path=PATH)
    if program is None:
        raise Unread(f"{argv[0]} is not installed")
    environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/", "SYSTEMD_COLORS": "0"}
    process = subprocess.Popen(
        [program, *argv[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd="/",
    )
    try:
        out, err = _hear(process, argv[0], stdin.encode(), time.monotonic() + seconds)
        status = process.wait(2)
    except subprocess.TimeoutExpired as error:
        raise Unread(f"{argv[0]} does not end") from error
    finally:
        process.kill()
        process.wait()
    if complaints is not None:
        complaints += filter(None, map(str.strip, _text(err).splitlines()))
    elif status:
        told = (err or out).decode(errors="replace").strip()[-300:]
        raise Unread(f"{' '.join(argv)[:120]}: status {status}: {told}", _text(out))
    return _text(out)


def _hear(process: subprocess.Popen[bytes], name: str, told: bytes, end: float) -> tuple[bytes, bytes]:
    """Write to a program as much as a pipe takes, and read both of its outputs to their end."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
    with process.stdin, process.stdout, process.stderr:
        try:
            process.stdin.write(told[:_PIECE])
            process.stdin.close()
        except BrokenPipeError:
            pass
        heard = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
        out, err = heard.values()
        poll, left = select.poll(), len(heard)
        for file in heard:
            poll.register(file, select.POLLIN)
        while left:
            if time.monotonic() >= end:
                raise Unread(f"{name} does not end in time")
            for file, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000):
                piece = os.read(file, _PIECE)
                heard[file] += piece
                if not piece:
                    poll.unregister(file)
                    left -= 1
            if len(out) + len(err) > LIMIT:
                raise Unread(f"{name} prints more than {LIMIT} octets")
        return bytes(out), bytes(err)


def run_json(argv: Sequence[str], stdin: str = "", seconds: float = SECONDS) -> list[Any]:
    """Run a program and return the JSON values that it printed, one after the other.

    Raises:
        Unread: it fails, or prints something else.

    """
    return values(run(argv, stdin, seconds))


def values(text: str, *, whole: bool = True) -> list[Any]:
    """Return the JSON values of a text, one after the other.

    Args:
        whole: whether nothing else may follow them.

    Raises:
        Unread: it is something else.

    """
    found: list[Any] = []
    decoder, at = json.JSONDecoder(), 0
    try:
        while at < len(text):
            if text[at].isspace():
                at += 1
                continue
            value, at = decoder.raw_decode(text, at)
            found.append(value)
    except (ValueError, RecursionError) as error:
        if not whole:
            return found
        raise Unread(f"this is no JSON: {text[at : at + 80]!r}") from error
    return found


def _text(data: bytes) -> str:
    """Return output as text; octets that are none stay as they are in names of files."""
    return data.decode(errors="surrogateescape")
