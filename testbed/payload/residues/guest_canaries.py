"""Writes canaries to the disks of a guest, and searches a disk for them.

It runs as root in a guest: one file, standard library only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

_CHUNK = 1 << 20  # octets
_DISCARD, _TRIM = 0x1277, 0xC0185879  # BLKDISCARD, FITRIM (linux/fs.h)
_MOST = 1 << 63

Facts = dict[str, object]


def write(request: Facts) -> Facts:
    """Write canaries, discard some of them, and search the disk as `search` does.

    Args:
        request: ``device``; ``regions``: place, length, canary in hexadecimal, and whether the region is
            discarded, of each part of the device; ``files``: path, length, canary, and whether the file is
            removed and its blocks are discarded; and the ``texts`` of the search.
    """
    descriptor = os.open(str(request["device"]), os.O_RDWR | os.O_DIRECT)
    try:
        for place, length, text, discarded in request["regions"]:  # type: ignore[attr-defined]
            buffer = mmap.mmap(-1, length)
            buffer.write(_filled(text, length))
            if os.pwritev(descriptor, [buffer], place) != length:
                raise OSError("the device takes less than it is given")
            os.fsync(descriptor)
            if discarded:
                fcntl.ioctl(descriptor, _DISCARD, struct.pack("=QQ", place, length))
    finally:
        os.close(descriptor)
    held = {}
    for path, length, text, discarded in request["files"]:  # type: ignore[attr-defined]
        with open(path, "wb") as file:
            file.write(_filled(text, length))
            os.fsync(file.fileno())
        with open(path, "rb") as file:
            held[path] = file.read().count(bytes.fromhex(text))
        if discarded:
            os.unlink(path)
            os.sync()
            folder = os.open(os.path.dirname(path), os.O_RDONLY)
            try:
                fcntl.ioctl(folder, _TRIM, struct.pack("=QQQ", 0, _MOST, 0))
            finally:
                os.close(folder)
    return {**search(request), "files": held}


def _filled(text: str, length: int) -> bytes:
    canary = bytes.fromhex(text)
    return (canary * (length // len(canary) + 1))[:length]


def search(request: Facts) -> Facts:
    """Return the size of a device, how much of it was read, and how often it holds each text.

    Args:
        request: ``device``; ``texts``, octets in hexadecimal by name, all of one length.
    """
    texts = {name: bytes.fromhex(text) for name, text in request["texts"].items()}  # type: ignore[attr-defined]
    found, read, before = dict.fromkeys(texts, 0), 0, b""
    longest = max(len(text) for text in texts.values())
    buffer = mmap.mmap(-1, _CHUNK)
    descriptor = os.open(str(request["device"]), os.O_RDONLY | os.O_DIRECT)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        while length := os.preadv(descriptor, [buffer], read):
            whole = before + buffer[:length]
            for name, text in texts.items():
                found[name] += whole.count(text)
            before, read = whole[1 - longest :], read + length
    finally:
        os.close(descriptor)
    return {"size": size, "read": read, "found": found, "files": {}}
