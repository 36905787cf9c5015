"""Writes files and folders with explicit modes, independent of the umask.

All secrets are written by this module. A file appears complete or not at all: its content goes into a new
file with an unused name, which is then renamed. No symbolic link is followed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE_UMASK = 0o077  # of our own processes: only the owner reads their files
USUAL_UMASK = 0o022  # of programs that we start: they make images and files that other accounts open
OWNER = 0o700  # folders that only we enter
PASSABLE = 0o711  # folders that others pass through, and do not list
PUBLIC = 0o755  # folders that others list
_CHUNK = 2**30


@contextmanager
def written(path: Path, mode: int = 0o600) -> Iterator[int]:
    """Yield the descriptor of a new file, which gets its name when the block ends.

    It replaces the file that had the name.

    Raises:
        OSError: the folder is missing or full; no partial file is left.

    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    descriptor = create(partial)
    try:
        try:
            os.fchmod(descriptor, mode)
            yield descriptor
        finally:
            os.close(descriptor)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def create(path: Path) -> int:
    """Return the descriptor of a new, empty file that only its owner reads.

    Raises:
        OSError: the name is taken.

    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, complete or not at all."""
    _write(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Write a file that all accounts can read, complete or not at all."""
    _write(path, content, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    with written(path, mode) as descriptor:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]


def copy_secret(source: Path, target: Path) -> None:
    """Copy a file to one that only its owner reads, complete or not at all.

    Raises:
        OSError: the source is a symbolic link, or cannot be read.

    """
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with written(target) as writing:
            while os.sendfile(writing, reading, None, _CHUNK):
                pass
    finally:
        os.close(reading)


def copy_secrets(source: Path, target: Path) -> None:
    """Copy the files of a folder into a new one that only its owner enters."""
    make_folder(target, OWNER)
    for path in sorted(source.iterdir()):
        if path.is_file():
            copy_secret(path, target / path.name)


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder with a mode, or change the mode of an existing one.

    Missing parents are made with mode 0755.

    Raises:
        OSError: the path is a file or a symbolic link, or belongs to another account.

    """
    for above in reversed(folder.parents):
        if not above.exists():
            _make(above, PUBLIC)
    _make(folder, mode)


def _make(folder: Path, mode: int) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
