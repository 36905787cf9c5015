"""Folders of the cache, and what every kept thing in one has in common: it is published whole, and known by its digests."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from testbed.drivers import process
from testbed.drivers.process import as_root


def clear_leftovers(folder: Path) -> list[Path]:
    """Delete what killed processes have left half-done in a cache folder; return what was deleted."""
    left = [path for path in sorted(folder.glob("*.partial-*")) if not Path(f"/proc/{path.name.rpartition('-')[2]}").exists()]
    for path in left:
        remove_tree(path)
    return left


def publish(partial: Path, target: Path) -> None:
    """Give a finished folder its name; if another process was faster, its folder stays, since a name stands for one content."""
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def altered(digests: Mapping[Path, str]) -> str:
    """Return which file is missing or has not its recorded digest, as the fact of an error; the empty string if none."""
    for path, recorded in digests.items():
        found = file_digest(path) if path.exists() else "missing"
        if found != recorded:
            return f"{path}: SHA-256 is {found}, recorded is {recorded}"
    return ""


def crowded(folder: Path, needed: int) -> str:
    """Return that a folder's disk has less free than so many bytes, as the fact of an error; the empty string if it has not."""
    free = shutil.disk_usage(folder).free
    return f"{folder} has {free // 2**20} MiB free, and {needed // 2**20} MiB are wanted" if free < needed else ""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_tree(path: Path) -> None:
    """Delete a file or folder; files of subordinate ids too."""
    if path.is_file():
        path.unlink()
        return
    process.run([*as_root(), "rm", "-rf", "--one-file-system", str(path)], what=f"cannot delete {path}", timeout=300)
