"""Files that are newer than the image, and files that give rights to a process.

System calls of a running machine cannot change an inode and keep it older than the image: the kernel sets its
change time. A file that was removed shows in its folder, which is newer then, with a digest of its names.
"""

from __future__ import annotations

import errno
import hmac
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread, read

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:  # OpenSSL's takes twice as long where a CPU's vectors are emulated
        from _sha2 import sha256
    except ImportError:  # before Python 3.12
        from hashlib import sha256

_SHOWN = (
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "tmpfs",
    "devtmpfs",
    "overlay",
    "vfat",
    "squashfs",
    "iso9660",
    "ramfs",
    "erofs",
    "9p",
    "virtiofs",
    "fuse",
    "fuseblk",
    "hugetlbfs",
)
_FILE = 8 * 2**20  # octets of one file that are read
_ALL = 128 * 2**20  # octets of all files that are read
_BUFFER = memoryview(bytearray(2**16))  # used again and again, since each new page costs a fault
# Files to which a service appends with each login of ours: `allowed.toml` lets their content differ.
LOGS = re.compile(r"/var/log/journal/[0-9a-f]{32}/(system|user-1000)\.journal|/var/log/audit/audit\.log")
_UNORDERED = "/run/udev/data/"  # udev writes the lines of a device in another order at each of its events
_SECONDS = 80.0  # that a walk may take
# Programs of the platform; a golden reading has their digests, so that a change which was taken back is none.
PROGRAMS = (
    "/usr/bin/ovn-controller",
    "/usr/bin/ovn-nbctl",
    "/usr/bin/ovn-northd",
    "/usr/bin/ovn-sbctl",
    "/usr/bin/ovs-appctl",
    "/usr/bin/ovs-ofctl",
    "/usr/bin/ovs-vsctl",
    "/usr/bin/virsh",
    "/usr/lib/openvswitch-switch/ovs-vswitchd",
    "/usr/lib/testbed/adopt.py",
    "/usr/sbin/auditd",
    "/usr/sbin/libvirtd",
    "/usr/sbin/nft",
    "/usr/sbin/ovsdb-server",
    "/usr/sbin/sshd",
    "/usr/sbin/swanctl",
    "/usr/sbin/virtlogd",
)
_SUPERBLOCK, _MADE = (
    1024,
    0x108,
)  # ext4: place of the superblock, and in it of the time at which the file system was made
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "device",
}


def made(mounts: str = "/proc/self/mountinfo") -> float:
    """Return when the root file system was made, in seconds since 1970; 0 if unknown."""
    for line in read(mounts, 2**22).splitlines():
        words, _, right = line.partition(" - ")
        if words.split()[4] == "/" and right.split()[0] in ("ext2", "ext3", "ext4"):
            try:
                with open(right.split()[1], "rb") as device:
                    device.seek(_SUPERBLOCK + _MADE)
                    return float(struct.unpack("<I", device.read(4))[0])
            except (OSError, struct.error):
                return 0.0
    return 0.0


class Walk:
    """A walk over all file systems that the first mount namespace sees.

    Args:
        since: files that have changed later are recorded with everything about them; seconds since 1970.
        key: for digests of files that not every account may read.
        whole: also record all folders, and programs of the platform, whatever their age, as "image file".

    """

    def __init__(self, records: Records, since: float, key: bytes, *, whole: bool = False) -> None:
        self._records, self._since, self._key, self._whole = records, since, key, whole
        self._left = _ALL
        self._devices: set[int] = set()

    def run(self, roots: list[str] | None = None) -> None:
        """Walk; the program find does what would take Python several times as long.

        It marks old programs without a bit for another account, of which only the capabilities matter.
        """
        places = roots or list(self._roots())
        self._devices = {os.lstat(place).st_dev for place in places if os.path.lexists(place)}
        program = ["-type", "f", "-perm"]
        wanted = ["-newerct", f"@{self._since:.3f}", "-o", *program, "/6000"]
        wanted += ["-o", "-type", "d"] if self._whole else []
        found = ["(", *wanted, ")", "-printf", r"+%p\0", "-o", *program, "/111", "-printf", r"-%p\0"]
        try:
            text = programs.run(["find", *places, "-ignore_readdir_race", "-xdev", *found], seconds=_SECONDS)
        except Unread as error:
            self._records.unread("file", "", error)
            text = error.output
        marked = [name for name in text.split("\0") if name]
        chosen = {name[1:] for name in marked if name[0] == "+" or _has_rights(name[1:])}
        for path in sorted(chosen.union(PROGRAMS if self._whole else ())):
            try:
                self._one(path, os.lstat(path))
            except FileNotFoundError:
                continue  # it has gone meanwhile
            except OSError as error:
                self._records.unread("file", path, error.strerror)

    def _roots(self) -> Iterator[str]:
        seen = set()
        for line in read("/proc/self/mountinfo", 2**22).splitlines():
            words, _, right = line.partition(" - ")
            fields, kind = words.split(), right.split()[0]
            place = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            if kind.partition(".")[0] in _SHOWN and (fields[2], fields[3]) not in seen:
                seen.add((fields[2], fields[3]))
                yield place

    def _one(self, path: str, seen: os.stat_result) -> None:
        newer = seen.st_ctime > self._since
        plain = stat.S_ISREG(seen.st_mode)
        runs = plain and seen.st_mode & 0o111
        more = _attributes(path) if newer or runs else {}
        rights = bool(plain and seen.st_mode & (stat.S_ISUID | stat.S_ISGID)) or "security.capability" in more
        old = self._whole and not newer and (stat.S_ISDIR(seen.st_mode) or path in PROGRAMS)
        if not newer and not rights and not old:
            return
        told: dict[str, object] = {
            "type": _KINDS.get(stat.S_IFMT(seen.st_mode), "?"),
            "mode": f"{stat.S_IMODE(seen.st_mode):04o}",
            "owner": f"{seen.st_uid}:{seen.st_gid}",
            "newer": newer,
            **({"attributes": more} if more else {}),
        }
        if plain:
            told |= {
                "size": seen.st_size,
                "names": seen.st_nlink,
                **(self._content(path, seen) if newer or old else {}),
            }
        elif stat.S_ISLNK(seen.st_mode):
            told["to"] = _target(path)
        elif stat.S_ISBLK(seen.st_mode) or stat.S_ISCHR(seen.st_mode):
            told["number"] = f"{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}"
        elif stat.S_ISDIR(seen.st_mode) and seen.st_dev in self._devices:
            told["entries"] = _entries(path)
        if old:
            self._records.add("image file", path, told)
        if newer or rights:
            self._records.add("file", path, told)

    def _content(self, path: str, seen: os.stat_result) -> dict[str, object]:
        """Return the digest of a file; keyed, where only some accounts may read what it holds."""
        if LOGS.fullmatch(path):
            return {"unread": "it is a log that grows"}
        if seen.st_size > min(_FILE, self._left):
            return {"unread": "it is large"}
        self._left -= seen.st_size
        public = seen.st_mode & 0o004
        digest = sha256() if public else hmac.new(self._key, digestmod=sha256)
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC)
            try:
                size, lines = 0, b""
                while size <= _FILE and (length := os.readv(file, [_BUFFER])):
                    if path.startswith(_UNORDERED):
                        lines += _BUFFER[:length]
                    else:
                        digest.update(_BUFFER[:length])
                    size += length
                digest.update(b"\n".join(sorted(lines.split(b"\n"))) if lines else b"")
            finally:
                os.close(file)
        except OSError as error:
            return {"unread": error.strerror}
        return {"sha256" if public else "keyed sha256": digest.hexdigest()}


def _entries(path: str) -> str:
    """Return a digest of the names in a folder."""
    try:
        return sha256(b"\0".join(sorted(map(os.fsencode, os.listdir(path))))).hexdigest()[:16]
    except OSError as error:
        return f"unread: {error.strerror}"


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        return f"unread: {error.strerror}"


def _has_rights(path: str) -> bool:
    """Return whether an old program has capabilities, or hides whether it has."""
    try:
        return "security.capability" in os.listxattr(path, follow_symlinks=False)
    except OSError:
        return True


def _attributes(path: str) -> dict[str, str]:
    """Return extended attributes: ACLs, capabilities, labels."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    except OSError as error:
        return {} if error.errno in (errno.ENOTSUP, errno.ENOENT) else {"unread": str(error.strerror)}


def digests(records: Records, domain: str, folders: list[str]) -> None:
    """Record digests of all files of folders whatever their age, such as those of authorities."""
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                own = f"{path}/{name}"
                try:
                    with open(own, "rb") as file:
                        records.add(domain, own, sha256(file.read(_FILE)).hexdigest())
                except OSError as error:
                    records.unread(domain, own, error.strerror)


def require(path: str) -> str:
    """Return a small file's text; empty if there is none.

    Raises:
        Unread: it is there, and cannot be read.

    """
    try:
        return read(path)
    except Unread:
        if os.path.exists(path):
            raise
        return ""
