"""Sends frames from every interface as soon as it exists (NET-13).

This is the only program of a throw-away guest, started by its initramfs. It imports few modules, since a
nested guest takes seconds to load `socket` and `pathlib`.
"""

from __future__ import annotations

import _socket as socket
import errno
import fcntl
import os
import struct
import time

_GONE = (errno.ENETDOWN, errno.ENOBUFS, errno.ENXIO, errno.ENODEV)
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1


def attack(frames: list[bytes], seconds: float, spacing: float = 0.005) -> dict[str, int]:
    """Send frames in rounds from every interface but the loopback; count the sent ones by name.

    Interfaces that appear meanwhile are used as well.

    Args:
        frames: frames of a round.
        seconds: duration.
        spacing: seconds between two frames.

    """
    end, sent = time.monotonic() + seconds, dict[str, int]()
    sockets: dict[str, socket.socket] = {}
    try:
        while time.monotonic() < end:
            for name in sorted(set(os.listdir("/sys/class/net")) - {"lo"}):
                if name not in sockets:
                    sockets[name] = _opened(name)
            for frame in frames:
                for name, opened in sockets.items():
                    sent[name] = sent.get(name, 0) + _offered(opened, frame)
                time.sleep(spacing)
    finally:
        for opened in sockets.values():
            opened.close()
    return sent


def _opened(name: str) -> socket.socket:
    """Set an interface up and return a socket that sends from it."""
    # struct ifreq (netdevice(7)): 16 octets of name, then a union whose first two octets are the flags
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    request = struct.pack("16sh14x", name.encode(), 0)
    flags = struct.unpack("16sh14x", fcntl.ioctl(control, _GET_FLAGS, request))[1]
    fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh14x", name.encode(), flags | _UP))
    control.close()
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind((name, 0))
    return opened


def _offered(opened: socket.socket, frame: bytes) -> bool:
    try:
        opened.send(frame)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return False
    return True
