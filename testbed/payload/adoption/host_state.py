"""Writes down what a host is: packages, files, units, kernel settings, modules, links, mounts and rules.

It runs as root on hosts that others have set up, and changes nothing. It writes a compressed tar archive on
standard output: the content of each file of the copied trees, under its SHA-256, and ``state.json`` last. It
needs Python 3.9.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

_FILE = 16 * 2**20  # octets of one file that is copied
_ALL = 192 * 2**20  # octets of all of them
_ENTRIES = 120_000  # files, folders and links of all trees
_SECONDS = 400.0  # for one program: systemctl took 120 s on a starved emulated host
_PACKAGES = "${binary:Package}\t${Version}\t${db:Status-Status}\n"
_UNITS = "Id,ActiveState,SubState,Transient,TriggeredBy,InvocationID"
# Reading or writing these does something, or their value changes by itself.
_LIVELY = ("kernel/ns_last_pid", "kernel/random/", "vm/compact_memory", "vm/drop_caches")
_OLD = (
    "/base_reachable_time",
    "/retrans_time",
)  # the kernel warns of who reads them; in milliseconds it has them too
_SETTING = 4096  # octets of a kernel setting
_ATTRIBUTES = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")


def record(request: dict[str, list[str]], output: IO[bytes]) -> None:
    """Write the archive.

    Args:
        request: ``copied`` (trees whose files are read), ``noted`` (trees whose files are described by size
            and time), ``listed`` (folders whose entries are described without size and time), ``left`` (trees
            that are left out), ``contents`` (whether copies are wanted: an empty list if not).
        output: standard output.

    Raises:
        ValueError: the trees are too large.
    """
    with (
        gzip.GzipFile(fileobj=output, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        files = list(_files(request, archive if request["contents"] else None))
        state = {
            "version": 1,
            "scope": {name: trees for name, trees in request.items() if name != "contents"},
            "machine": _machine(),
            "packages": _rows(["dpkg-query", "--show", "--showformat=" + _PACKAGES]),
            "files": files,
            "units": _units(),
            "sysctls": _sysctls(),
            "modules": sorted(line.split()[0] for line in _text("/proc/modules").splitlines()),
            "links": _links(),
            "mounts": sorted({line.split()[1] for line in _text("/proc/mounts").splitlines()}),
            "rules": _rules(),
        }
        _add(archive, "state.json", json.dumps(state).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _files(request: dict[str, list[str]], archive: tarfile.TarFile | None) -> Iterator[str]:
    entries, octets, written = 0, 0, set()
    for kind in ("copied", "noted", "listed"):
        left = set(request["left"]) | (set(request["copied"]) if kind == "noted" else set())
        for tree in request[kind]:
            for path in _walk(tree, left, deep=kind != "listed"):
                try:
                    about = os.lstat(path)
                    digest, content = "-", b""
                    if kind == "copied" and stat.S_ISREG(about.st_mode):
                        if about.st_size > _FILE:
                            raise ValueError(f"{path} has {about.st_size} octets, and {_FILE} are copied")
                        with open(path, "rb") as stream:
                            content = stream.read(_FILE)
                        digest = hashlib.sha256(content).hexdigest()
                    yield _entry(path, about, digest, precise=kind != "listed")
                except OSError:
                    continue  # it has gone meanwhile
                entries += 1
                if digest != "-" and digest not in written and archive is not None:
                    written.add(digest)
                    octets += len(content)
                    _add(archive, digest, content)
                if entries > _ENTRIES or octets > _ALL:
                    raise ValueError(f"more than {_ENTRIES} files, or {_ALL} octets to copy")


def _walk(tree: str, left: set[str], *, deep: bool) -> Iterator[str]:
    """Yield the paths of a tree on one file system; the tree itself unless it is only listed."""
    if not os.path.lexists(tree):
        return
    if not deep:
        yield from (os.path.join(tree, name) for name in sorted(os.listdir(tree)))
        return
    device = os.lstat(tree).st_dev
    stack = [tree]
    while stack:
        path = stack.pop()
        if path in left:
            continue
        yield path
        try:
            about = os.lstat(path)
            if stat.S_ISDIR(about.st_mode) and about.st_dev == device:
                stack += (os.path.join(path, name) for name in os.listdir(path))
        except OSError:
            continue


def _entry(path: str, about: os.stat_result, digest: str, *, precise: bool) -> str:
    """Return one line: type, mode, owner, group, size, time, digest, attributes, path.

    A NUL and the target follow the path of a link. The octets of names become characters of Latin-1, so that
    any name is text.
    """
    kind = stat.S_IFMT(about.st_mode)
    letter = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}.get(kind, "o")
    size = about.st_size if precise and letter == "f" else 0
    when = about.st_mtime_ns if precise and letter in "fl" else 0
    words = [letter, f"{stat.S_IMODE(about.st_mode):o}", about.st_uid, about.st_gid, size, when, digest]
    attributes = "-" if letter == "l" else ",".join(_attributes(path)) or "-"
    name = f"{path}\0{os.readlink(path)}" if letter == "l" else path
    return " ".join([*map(str, words), attributes, os.fsencode(name).decode("latin-1")])


def _attributes(path: str) -> Iterator[str]:
    try:
        found = os.listxattr(path, follow_symlinks=False)
        for name in sorted(set(found) & set(_ATTRIBUTES)):
            yield f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}"
    except OSError:
        return


def _machine() -> dict[str, str]:
    system = dict(line.split("=", 1) for line in _text("/etc/os-release").splitlines() if "=" in line)
    return {
        "board": _text("/sys/class/dmi/id/product_uuid").strip(),
        "name": os.uname().nodename,
        "system": system.get("PRETTY_NAME", "").strip('"'),
        "kernel": os.uname().release,
        "boot": _text("/proc/sys/kernel/random/boot_id").strip(),
        "command line": _text("/proc/cmdline").strip(),
    }


def _rows(argv: list[str]) -> list[str]:
    return sorted(_output(argv).splitlines())


def _output(argv: list[str]) -> str:
    """Return what a program prints; nothing if the host has no such program.

    Raises:
        SubprocessError: it fails, or does not end in time.
    """
    try:
        return subprocess.run(
            argv, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=_SECONDS
        ).stdout.decode(errors="replace")
    except FileNotFoundError:
        return ""


def _units() -> dict[str, list[str]]:
    """Return active and sub state, and invocation, of each unit that lives longer than a session.

    A service that a socket or timer starts comes and goes by itself.
    """
    found = {}
    for text in _output(["systemctl", "show", "--all", "--property=" + _UNITS, "*"]).split("\n\n"):
        unit = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        name = unit.get("Id", "")
        lasting = unit.get("Transient") == "no" and not unit.get("TriggeredBy")
        if lasting and name.endswith((".service", ".socket", ".timer", ".path", ".mount")):
            found[name] = [unit["ActiveState"], unit["SubState"], unit.get("InvocationID", "")]
    return found


def _sysctls() -> dict[str, str]:
    found = {}
    root = "/proc/sys/"
    for folder, folders, names in os.walk(root):
        if folder == root + "fs" and "binfmt_misc" in folders:
            folders.remove("binfmt_misc")  # to open it mounts it
        for name in names:
            path = os.path.join(folder, name)
            setting = path[len(root) :]
            try:
                if os.stat(path).st_mode & stat.S_IWUSR and not _left_out(setting):
                    found[setting] = _read(path)
            except (OSError, UnicodeDecodeError):
                continue  # it can be written only, or has gone with its link
    return found


def _left_out(setting: str) -> bool:
    return setting.startswith(_LIVELY) or setting.endswith(_OLD)


def _links() -> dict[str, str]:
    """Return the names of network interfaces, each with its address and whether hardware is below it."""
    root = "/sys/class/net"
    return {
        name: f"{_text(f'{root}/{name}/address').strip()} "
        f"{'hardware' if os.path.exists(f'{root}/{name}/device') else 'virtual'}"
        for name in sorted(os.listdir(root))
        if os.path.isdir(f"{root}/{name}")
    }


def _rules() -> str:
    """Return the rules of the packet filter without counters; the empty string without nft."""
    return _output(["nft", "--stateless", "list", "ruleset"])


def _read(path: str) -> str:
    with open(path, "rb") as stream:
        return stream.read(_SETTING).decode()


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def main(request: dict[str, list[str]]) -> int:
    """Write the archive, or the reason why there is none on standard error."""
    try:
        record(request, sys.stdout.buffer)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
