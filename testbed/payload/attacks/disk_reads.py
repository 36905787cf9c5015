"""Reads a disk as fast as it answers, in a guest: random places, past all caches (DOS-04)."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import time

DISK = "/dev/vda"


def read(size: int, seconds: float, over: str) -> None:
    """Read pieces of some bytes, one after another, for some seconds, or until a file is there."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(over)
    disk = os.open(DISK, os.O_RDONLY | os.O_DIRECT)
    room = mmap.mmap(-1, size)
    places = os.lseek(disk, 0, os.SEEK_END) // size
    end = time.monotonic() + seconds
    while time.monotonic() < end and not os.path.exists(over):
        os.preadv(disk, [room], random.randrange(places) * size)  # noqa: S311 - no secret
