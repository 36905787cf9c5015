"""Reads the sockets of the channels from guests into a node (DEV-03).

It runs as root on nodes: one file, standard library only.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHANNELS = "/run/libvirt/qemu/channel"
_LISTENS = 0x10000  # flag of a socket in /proc/net/unix: it accepts connections (Linux, net/unix/af_unix.c)

Facts = dict[str, object]


def collect(_: object) -> Facts:
    """Return the sockets of all channels."""
    listening = list(_listening())
    found = []
    for folder in sorted(os.listdir(_CHANNELS)):
        facts = os.stat(f"{_CHANNELS}/{folder}")
        for name in sorted(os.listdir(f"{_CHANNELS}/{folder}")):
            path = f"{_CHANNELS}/{folder}/{name}"
            own = os.lstat(path)
            found.append(
                {
                    "domain": folder.partition("-")[2],
                    "path": path,
                    "socket": stat.S_ISSOCK(own.st_mode),
                    "owner": [own.st_uid, own.st_gid, stat.S_IMODE(own.st_mode)],
                    "folder": [facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)],
                    "listening": listening.count(path),
                }
            )
    return {"sockets": found}


def _listening() -> Iterator[str]:
    """Yield the path of each UNIX socket that accepts connections (proc(5), /proc/net/unix)."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        next(file)
        for row in file:
            columns = row.split(maxsplit=7)
            if len(columns) > 7 and int(columns[3], 16) & _LISTENS:
                yield columns[7].strip()
