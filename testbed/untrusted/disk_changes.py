"""Lists what differs between a machine's disk and the disk it was made from; a program of its own.

    python -m testbed.untrusted.disk_changes BASE DISK FOLDER ACCOUNT

BASE and DISK are raw images with an ext4 file system. What is on DISK is hostile, and a parser in C reads
it. So the program opens both files, goes to the empty FOLDER as its root, takes the number ACCOUNT as uid and
gid, and only then reads. It starts in namespaces of its own, without a network. Its standard input is the key
for digests of files that not every account may read; its standard output is one JSON object.
"""

from __future__ import annotations

import hmac
import json
import os
import resource
import stat
import sys
from bisect import bisect_left
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytsk3

INODES = 200_000  # of one disk
_ANSWER = 20_000  # changed inodes that are told
_DEPTH = 64  # folders within one another
_FILE = 8 * 2**20  # octets of one file that are read, as on the machine
_ALL = 256 * 2**20  # octets of all files that are read
_CHUNK = 2**20
_MEMORY, _SECONDS = 2**30, 60  # of address space, and of CPU time
_HOLES = int(pytsk3.TSK_FS_ATTR_RUN_FLAG_SPARSE) | int(pytsk3.TSK_FS_ATTR_RUN_FLAG_FILLER)
_SUPERBLOCK, _WRITTEN = 1024, 0x30  # places of the superblock, and in it of the time of its last write
_KINDS = {
    pytsk3.TSK_FS_META_TYPE_REG: "file",
    pytsk3.TSK_FS_META_TYPE_DIR: "folder",
    pytsk3.TSK_FS_META_TYPE_LNK: "link",
    pytsk3.TSK_FS_META_TYPE_FIFO: "pipe",
    pytsk3.TSK_FS_META_TYPE_SOCK: "socket",
    pytsk3.TSK_FS_META_TYPE_BLK: "block device",
    pytsk3.TSK_FS_META_TYPE_CHR: "device",
}


class _Raw(pytsk3.Img_Info):  # type: ignore[misc] # pytsk3 has no types
    """A raw image that is open already."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def get_size(self) -> int:
        return self._size


def _inodes(system: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - pytsk3 has no types
    """Yield each name with its inode: folders before what is in them, none twice.

    Raises:
        ValueError: there are more than `INODES`, or folders are too deep.

    """
    count = 0
    waiting = [("", system.open_dir("/"), 0)]
    entered = set()
    while waiting:
        above, folder, depth = waiting.pop()
        for entry in folder:
            name = entry.info.name
            if not int(name.flags) & int(pytsk3.TSK_FS_NAME_FLAG_ALLOC) or entry.info.meta is None:
                continue
            if name.name in (b".", b"..") or (not above and name.name == b"$OrphanFiles"):
                continue
            count += 1
            if count > INODES:
                raise ValueError(f"there are more than {INODES} inodes")
            path = f"{above}/{name.name.decode(errors='surrogateescape')}"
            yield path, entry
            meta = entry.info.meta
            if meta.type == pytsk3.TSK_FS_META_TYPE_DIR and meta.addr not in entered:
                if depth >= _DEPTH:
                    raise ValueError(f"more than {_DEPTH} folders are within one another")
                entered.add(meta.addr)
                waiting.append((path, entry.as_directory(), depth + 1))


def _state(entry: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return what changes whenever a system call changes an inode; not the times of access."""
    meta = entry.info.meta
    return (
        meta.addr, int(meta.type), int(meta.mode), meta.uid, meta.gid, meta.size, meta.nlink,
        meta.mtime, meta.mtime_nano, meta.ctime, meta.ctime_nano,
    )  # fmt: skip


class _Reader:
    """Reads changed files, up to a limit of all of them together.

    Args:
        key: for digests of files that not every account may read.

    """

    def __init__(self, key: bytes) -> None:
        self._key, self._left = key, _ALL

    def told(self, entry: Any) -> dict[str, object]:  # noqa: ANN401
        """Return an inode as the machine's own reading tells it, and when it changed (seconds since 1970)."""
        meta = entry.info.meta
        mode = int(meta.mode) & 0o7777
        told: dict[str, object] = {
            "type": _KINDS.get(meta.type, "?"),
            "mode": f"{mode:04o}",
            "owner": f"{meta.uid}:{meta.gid}",
            "changed": meta.ctime,
        }
        if meta.type == pytsk3.TSK_FS_META_TYPE_REG:
            told["size"] = meta.size
            told |= self._content(entry, meta.size, public=bool(mode & stat.S_IROTH))
        elif meta.type == pytsk3.TSK_FS_META_TYPE_LNK:
            told["to"] = (meta.link or b"").decode(errors="backslashreplace")
        return told

    def _content(self, entry: Any, size: int, *, public: bool) -> dict[str, object]:  # noqa: ANN401
        if size > min(_FILE, self._left):
            return {}
        self._left -= size
        digest = sha256() if public else hmac.new(self._key, digestmod=sha256)
        for offset in range(0, size, _CHUNK):
            digest.update(entry.read_random(offset, min(_CHUNK, size - offset)))
        return {"sha256" if public else "keyed sha256": digest.hexdigest()}


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield beginning and end of each part of a sparse file that holds data."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # nothing follows
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _changed_blocks(base: int, disk: int, block: int) -> list[int]:
    """Return the numbers of the blocks of `block` octets that differ, sorted."""
    chunks = {
        place
        for file in (base, disk)
        for start, end in _data(file)
        for place in range(start // _CHUNK, -(-end // _CHUNK))
    }
    found = []
    for chunk in sorted(chunks):
        old, new = (os.pread(file, _CHUNK, chunk * _CHUNK) for file in (base, disk))
        if old == new:
            continue
        found += [
            (chunk * _CHUNK + at) // block
            for at in range(0, max(len(old), len(new)), block)
            if old[at : at + block] != new[at : at + block]
        ]
    return found


def _holds(entry: Any, blocks: list[int]) -> bool:  # noqa: ANN401
    """Return whether one of the blocks, which are sorted, holds content of a file."""
    for attribute in entry:
        for run in attribute:
            at = bisect_left(blocks, run.addr)
            if not int(run.flags) & _HOLES and at < len(blocks) and blocks[at] < run.addr + run.len:
                return True
    return False


def compared(base: int, disk: int, key: bytes) -> dict[str, object]:
    """Return the differences of two disks, open as raw images.

    Returns:
        ``changed``: what the machine's own reading should tell, by path, for each inode that is new or
        differs; ``altered``: paths of files of which the content differs although nothing has changed the
        inode; ``inodes`` of the disk; ``written``: when its file system was last written out, in seconds
        since 1970.

    Raises:
        OSError: one of them is no file system that can be read.
        ValueError: the disk is beyond the bounds.

    """
    made, system, reader = pytsk3.FS_Info(_Raw(base)), pytsk3.FS_Info(_Raw(disk)), _Reader(key)
    if made.info.block_size != system.info.block_size:
        raise ValueError(f"its blocks have {system.info.block_size} octets")
    old = {path: _state(entry) for path, entry in _inodes(made)}
    blocks = _changed_blocks(base, disk, made.info.block_size)
    changed: dict[str, dict[str, object]] = {}
    altered: list[str] = []
    count = 0
    for path, entry in _inodes(system):
        count += 1
        if old.get(path) != _state(entry):
            changed[path] = reader.told(entry)
        elif entry.info.meta.type == pytsk3.TSK_FS_META_TYPE_REG:
            altered += [path] if _holds(entry, blocks) else []
        if len(changed) + len(altered) > _ANSWER:
            raise ValueError(f"more than {_ANSWER} inodes have changed")
    written = os.pread(disk, 4, _SUPERBLOCK + _WRITTEN)
    return {
        "changed": changed, "altered": altered, "inodes": count, "written": int.from_bytes(written, "little"),
    }  # fmt: skip


def _confine(folder: str, account: int) -> None:
    """Give up everything but the open files."""
    os.chroot(folder)
    os.chdir("/")
    if os.getgid() != account:  # within a user namespace it may be ours, which sets no groups
        os.setgroups([])
    os.setresgid(account, account, account)
    os.setresuid(account, account, account)
    limits = {
        resource.RLIMIT_AS: _MEMORY,
        resource.RLIMIT_CPU: _SECONDS,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def main() -> int:
    """Compare the disks that the arguments name."""
    base, disk = (os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) for path in sys.argv[1:3])
    key = bytes.fromhex(sys.stdin.read())
    hmac.new(key, digestmod=sha256)  # OpenSSL loads what it needs at the first use
    _confine(sys.argv[3], int(sys.argv[4]))
    try:
        found = compared(base, disk, key)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{str(error)[:400]}\n")
        return 1
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
