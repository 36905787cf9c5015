"""Folders of the cache: each entry is published whole and identified by its digests.

An entry of a cache folder is ours if its name matches one of our patterns and agrees with its manifest.
Nothing else is used or removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed import timeouts
from testbed.drivers.host import ownership, process
from testbed.drivers.host.private_files import OWNER, PUBLIC, make_folder
from testbed.drivers.host.process import as_root
from testbed.errors import ImageError

_LIBC = ctypes.CDLL(None, use_errno=True)
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, and a flag of linux/fs.h
_NAME = r"[a-z0-9][a-z0-9-]{0,40}"
_KEY = r"[0-9a-f]{16}"
BASE = re.compile(rf"base-{_NAME}-{_KEY}\.tar")  # archives of root file systems
IMAGE, MEMORY, CHECKPOINT = "manifest.json", "golden.json", "checkpoint.json"  # kinds, by their manifests
_CHECKPOINTS = "checkpoint-"
_KINDS = {
    IMAGE: (re.compile(rf"{_NAME}-{_KEY}"), "{name}-{key}"),
    MEMORY: (re.compile(rf"golden-{_NAME}-{_KEY}"), "golden-{role}-{key}"),
    CHECKPOINT: (re.compile(rf"{_CHECKPOINTS}{_NAME}"), f"{_CHECKPOINTS}{{name}}"),
}


def claim(folder: Path) -> None:
    """Make a cache folder, or mark one that an earlier version of testbed made.

    Raises:
        MachineError: other accounts can change its content.
        UsageError: the folder holds something else.

    """
    ownership.require_trust(folder)
    ownership.claim(
        folder, ownership.CACHE, PUBLIC, known=lambda: any(any(entries(folder, kind)) for kind in _KINDS)
    )


def require(folder: Path) -> None:
    """Refuse to remove anything from a folder that is no cache of ours; raises like `claim`."""
    ownership.require_trust(folder)
    if folder.exists():
        claim(folder)


def entries(folder: Path, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield path and manifest of each entry of one kind in a cache folder.

    Args:
        kind: IMAGE, MEMORY or CHECKPOINT.

    """
    pattern, name = _KINDS[kind]
    for path in sorted(folder.glob("*")):
        if pattern.fullmatch(path.name) and _owned(path, folder):
            found = _manifest(path / kind)
            if found and _named(name, found) == path.name:
                yield path, found


def _named(name: str, manifest: Mapping[str, Any]) -> str:
    try:
        return name.format_map(manifest)
    except (LookupError, AttributeError, ValueError):
        return ""


def _manifest(path: Path) -> dict[str, Any]:
    """Return a manifest's content; empty if it is not valid or another process is removing it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _owned(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder, not a link, and has the same owner as the cache."""
    try:
        return not path.is_symlink() and path.is_dir() and path.stat().st_uid == folder.stat().st_uid
    except OSError:
        return False


def clear_leftovers(folder: Path) -> list[Path]:
    """Delete partial entries of processes of ours that no longer run; return their paths."""
    names = "|".join((BASE.pattern, *(pattern.pattern for pattern, _ in _KINDS.values())))
    half = re.compile(rf"(?:{names})\.partial-([0-9]+)")
    left = [path for path in sorted(folder.glob("*.partial-*")) if _abandoned(path, half)]
    remove_tree(*left)
    return left


def _abandoned(path: Path, half: re.Pattern[str]) -> bool:
    # a partial entry ends with the id of the process that writes it
    found = half.fullmatch(path.name)
    if not found or path.lstat().st_uid != os.geteuid():
        return False
    if path.name.startswith(_CHECKPOINTS):  # written inside a lab's namespaces, where ids are others
        return not _locked(path)
    return not Path(f"/proc/{found[1]}").exists()


@contextmanager
def written(partial: Path) -> Iterator[None]:
    """Make a partial entry, and lock it during the block, so that other processes do not clear it."""
    make_folder(partial, OWNER)
    with _descriptor(partial) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _locked(partial: Path) -> bool:
    """Return whether a process writes a partial entry, or whether that cannot be found out."""
    try:
        with _descriptor(partial) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


@contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def adding(folder: Path, progress: Callable[[str], object]) -> Iterator[None]:
    """Claim a cache folder and add entries to it during the block; wait for another process that adds some.

    What that process has added is there when the block begins, and what a killed one left is gone.

    Raises:
        MachineError, UsageError: as `claim`.

    """
    claim(folder)
    with _descriptor(folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that bakes or saves for {folder}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        clear_leftovers(folder)
        yield


def publish(partial: Path, target: Path) -> None:
    """Give a finished folder its final name.

    If another process was faster, its folder stays: a name identifies one content.
    """
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def replace(partial: Path, target: Path) -> None:
    """Give a finished folder its final name; a folder that has the name moves to `partial`.

    Both names change in one step (renameat2(2)), so a killed process loses neither folder. A file system
    without that step deletes the old folder first.

    Raises:
        OSError: the folder cannot be renamed.
        ProvisioningError: the old folder cannot be deleted.

    """
    if target.exists():
        names = (_HERE, os.fsencode(partial.absolute()), _HERE, os.fsencode(target.absolute()))
        if _LIBC.renameat2(*names, _RENAME_EXCHANGE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number), str(target))
        remove_tree(target)
    partial.rename(target)


def take_back(folder: Path) -> None:
    """Make root the owner of the files in a cache folder again.

    An emulator's account owned them while it wrote them, and an owner could make them writable.
    """
    if os.geteuid() == 0 and folder.is_dir() and folder.stat().st_uid == 0:
        for path in folder.iterdir():
            os.chown(path, 0, os.getegid(), follow_symlinks=False)


def altered(digests: Mapping[Path, str]) -> str:
    """Return the fact of an error if a file is missing or has another digest, or ""."""
    for path, recorded in digests.items():
        found = file_digest(path) if path.exists() else "missing"
        if found != recorded:
            return f"{path}: SHA-256 is {found}, recorded is {recorded}"
    return ""


def require_unaltered(folder: Path, digests: Mapping[str, str], what: str, name: str) -> None:
    """Compare the files of an image, or of the saved memory of one, with their recorded digests.

    Args:
        folder: where the files are.
        digests: SHA-256 (hexadecimal) by file.
        what: first part of the error.
        name: name of the image that `testbed image rm` takes.

    Raises:
        ImageError: a file is missing or has changed.

    """
    if fact := altered({folder / file: digest for file, digest in digests.items()}):
        remedy = f"remove it with `testbed image rm {name}` and run the command again: it is made again"
        raise ImageError(what, fact=fact, remedy=remedy)


def crowded(folder: Path, needed: int) -> str:
    """Return the fact of an error if a folder's disk has too little free space, or "".

    Args:
        needed: bytes.

    """
    free = shutil.disk_usage(folder).free
    return (
        f"{folder} has {free // 2**20} MiB free, and {needed // 2**20} MiB are wanted"
        if free < needed
        else ""
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_tree(*paths: Path) -> None:
    """Delete files and folders, including those that subordinate ids own.

    Symbolic links are not followed, and other file systems are not entered.

    Raises:
        ProvisioningError: one of them cannot be deleted.

    """
    if paths:
        argv = [*as_root(), "rm", "-rf", "--one-file-system", "--", *map(str, paths)]
        process.run(argv, what=f"cannot delete {paths[0]}", timeout=timeouts.DELETION)
