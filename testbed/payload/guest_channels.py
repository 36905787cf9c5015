"""Reads the channels from guests into a node: sockets, and texts in logs (DEV-03).

It runs as root on nodes: one file, standard library only.
"""

from __future__ import annotations

import os
import stat
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHANNELS = "/run/libvirt/qemu/channel"
_LISTENS = 0x10000  # flag of a socket in /proc/net/unix: it accepts connections (Linux, net/unix/af_unix.c)
_LOGS = "/var/log"
_SIZE = 64 * 2**20  # octets of a log that are read, at most, from its end
_LINE, _MOST = 400, 50  # characters of a line, and lines
_SECONDS = 60

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


def search(request: dict[str, object]) -> Facts:
    """Return the lines of a node's logs that have a text: of files written since, and of the journal.

    Args:
        request: ``text``; ``since``, seconds since the epoch; ``skipped``: files that are not the node's.
    """
    text, since = str(request["text"]), int(str(request["since"]))
    skipped = request["skipped"]
    assert isinstance(skipped, list)
    files = []
    for folder, _, names in os.walk(_LOGS):
        if "/journal" in folder:
            continue
        for name in names:
            path = f"{folder}/{name}"
            if not any(path.startswith(other) for other in skipped):
                files += [[path, row] for row in _rows(path, since) if text in row]
    argv = ["journalctl", "--no-pager", "-q", f"--since=@{since}"]
    done = subprocess.run(argv, capture_output=True, timeout=_SECONDS, check=True)
    rows = done.stdout.decode(errors="surrogateescape").split("\n")
    journal = [row for row in rows if text in row]
    return {
        "files": [[path, ascii(row[:_LINE])] for path, row in files[:_MOST]],
        "journal": [ascii(row[:_LINE]) for row in journal[:_MOST]],
        "libvirt": sum(" libvirtd[" in row for row in rows),
    }


def _rows(path: str, since: int) -> list[str]:
    """Return the last lines of a file; none of one that was not written since then."""
    try:
        with open(path, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_mtime < since:
                return []
            file.seek(max(0, facts.st_size - _SIZE))
            return file.read().decode(errors="surrogateescape").split("\n")
    except FileNotFoundError:  # a log that was rotated
        return []
