"""Marks that identify our folders, and checks that only we can write to them.

A folder without a mark is never removed. A mark is a file that names the kind of its folder. A folder that
existed before is marked only while it is empty, so that a user's own folder never becomes a state folder, a
cache folder or a lab.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from testbed.drivers.host.private_files import make_folder, write_public
from testbed.errors import MachineError, TestbedError, UsageError

MARK = ".testbed"
STATE, CACHE = "testbed state folder", "testbed cache folder"
_READ = 200  # bytes of a mark
_SHOWN = 3  # names that an error lists of a folder that is not ours
_MOUNTS = Path("/proc/self/mountinfo")


def lab_mark(name: str) -> str:
    """Return the text of the mark in a lab's folder."""
    return f"testbed lab {name}"


def distrust(folder: Path, *, shared: bool = False) -> str:
    """Return why our files are not safe in a folder, or the empty string.

    The rule is that of sshd's StrictModes: only root and we may rename anything on the path, and only we may
    write into the folder. A missing folder is as safe as its parents.

    Args:
        shared: the folder may belong to root, and we read from it.

    """
    if found := _way(folder) or _way(folder.resolve()):
        return found
    if not folder.exists():
        return ""
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is not a folder"
    if status.st_uid not in ((os.geteuid(), 0) if shared else (os.geteuid(),)):
        return f"{folder} belongs to uid {status.st_uid}, and we are uid {os.geteuid()}"
    if status.st_mode & 0o022:
        return f"{folder} has mode {status.st_mode & 0o7777:04o}: others may write into it"
    return ""


def _way(folder: Path) -> str:
    """Return the part of a path through which other accounts can redirect it, or ""."""
    for path in chain(reversed(folder.parents), [folder]):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{path} cannot be looked at: {error.strerror}"
        if status.st_uid not in (os.geteuid(), 0):
            return f"{path} belongs to uid {status.st_uid}, and we are uid {os.geteuid()}"
        # writable for others and without the sticky bit; /tmp has it, so that only owners rename there
        if path != folder and status.st_mode & 0o1002 == 0o002 and stat.S_ISDIR(status.st_mode):
            return f"{path} has mode {status.st_mode & 0o7777:04o}: everybody may replace what is in it"
    return ""


def require_trust(folder: Path, *, shared: bool = False) -> None:
    """Refuse a state or cache folder that other accounts can change.

    Raises:
        MachineError: another account can change it.

    """
    if fact := distrust(folder, shared=shared):
        raise MachineError(f"{folder} is not safe to use", fact=fact, remedy=remedy_of_distrust(folder))


def require_way(folder: Path) -> None:
    """Refuse a path whose symbolic links others can change.

    Raises:
        MachineError: they can.

    """
    if fact := _way(folder):
        raise MachineError(f"{folder} is not safe to use", fact=fact, remedy=remedy_of_distrust(folder))


def remedy_of_distrust(folder: Path) -> str:
    """Return the remedy for a folder that other accounts can change."""
    mend = f"chown {os.geteuid()} {folder} and chmod go-w {folder}"
    return f"{mend} if it is yours; or name another (TESTBED_STATE_DIR, TESTBED_CACHE_DIR)"


def marked(folder: Path, mark: str) -> bool:
    """Return whether a folder is ours and holds the mark.

    Folder and mark must belong to us, must not be symbolic links and must not be writable for others.
    """
    try:
        status = folder.lstat()
        descriptor = os.open(folder / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as stream:
        told = os.fstat(descriptor)
        text = stream.read(_READ).decode(errors="replace") if stat.S_ISREG(told.st_mode) else ""
    own = told.st_uid == status.st_uid == os.geteuid() and not (told.st_mode | status.st_mode) & 0o022
    return own and stat.S_ISDIR(status.st_mode) and text.rstrip("\n") == mark


def require_mark(folder: Path, mark: str) -> None:
    """Refuse a folder that we have not made.

    Raises:
        UsageError: it does not carry the mark.

    """
    if not marked(folder, mark):
        raise _foreign(folder, mark)


def claim(folder: Path, mark: str, mode: int, *, known: Callable[[], bool] = lambda: False) -> None:
    """Make a marked folder; an existing one must be ours, or empty.

    Args:
        known: returns whether an earlier version of testbed made a folder that has content and no mark.

    Raises:
        UsageError: the folder is not ours.

    """
    try:
        if not folder.exists():
            make_folder(folder, mode)
        if marked(folder, mark):
            return
        if not folder.is_symlink() and folder.is_dir() and (not _content(folder) or known()):
            write_public(folder / MARK, f"{mark}\n".encode())
    except OSError as error:
        raise UsageError(f"{folder} cannot be made", fact=str(error), remedy="name another place") from error
    require_mark(folder, mark)


def _content(folder: Path) -> list[str]:
    """Return the names in a folder, without half-written marks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(f".{MARK}."))


def _foreign(folder: Path, mark: str) -> TestbedError:
    if folder.is_symlink():
        fact = f"it is a symbolic link to {folder.resolve()}"
    elif not folder.exists():
        fact = "it does not exist"
    elif not folder.is_dir():
        fact = "it is not a folder"
    else:
        content = _content(folder)
        shown = ", ".join(content[:_SHOWN]) or "nothing"
        more = f" and {len(content) - _SHOWN} more" if len(content) > _SHOWN else ""
        fact = f"{folder / MARK} does not say so; the folder holds {shown}{more}"
    other = "name another, which is missing or empty"
    remedy = f"{other}; or, if an earlier version of testbed made it: echo {mark} > {folder / MARK}"
    return UsageError(f"{folder} is no {mark} that we may change", fact=fact, remedy=remedy)


def require_no_mount(folder: Path) -> None:
    """Refuse to remove a folder with a mount point, since the mounted files are not ours.

    Raises:
        UsageError: something is mounted in the folder, or on it.

    """
    place = str(folder.resolve())
    for line in _MOUNTS.read_text().splitlines():
        # mountinfo writes spaces and some other characters as three octal digits (proc(5))
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[4])
        if point == place or point.startswith(f"{place}/"):
            remedy = f"umount {point}, then run the command again"
            raise UsageError(f"{folder} is not removed", fact=f"{point} is a mount point", remedy=remedy)
