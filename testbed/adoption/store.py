"""Records of hosts on disk: private to their owner, complete or not there at all, and never overwritten."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from testbed.drivers.host import ownership
from testbed.drivers.host.content_store import remove_tree
from testbed.drivers.host.private_files import OWNER, make_folder, write_secret, written
from testbed.errors import LockedError, ProvisioningError, UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%-]{0,127}")
_FOLDER, _END = ".hosts", ".record"  # no lab has such a name
_COPY = 2**20


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one host.

    Args:
        root: the state folder.
        host: as ssh(1) takes it.

    Raises:
        UsageError: the name cannot be that of a folder.
    """

    root: Path
    host: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.host):
            fact = (
                "names have at most 128 letters, digits and . _ @ : % -, and begin with a letter, digit or _"
            )
            remedy = "give the host such a name in your ssh configuration"
            raise UsageError(f"no record can have the name {self.host[:80]!r}", fact=fact, remedy=remedy)

    @property
    def folder(self) -> Path:
        """Folder of the record."""
        return self.root / _FOLDER / f"{self.host}{_END}"

    @property
    def archive(self) -> Path:
        """Archive of contents and state."""
        return self.folder / "record.tar.gz"

    @property
    def journal(self) -> Path:
        """Steps of a restore that has begun."""
        return self.folder / "journal.json"

    @property
    def made(self) -> datetime:
        """When the record was made."""
        return datetime.fromtimestamp(self.archive.stat().st_mtime, UTC)

    def require(self) -> None:
        """Return if there is a record.

        Raises:
            UsageError: there is none.
        """
        if not self.archive.is_file():
            fact = f"{self.archive} does not exist"
            raise UsageError(
                f"there is no record of {self.host}",
                fact=fact,
                remedy=f"run `testbed host record {self.host}`",
            )

    def require_none(self) -> None:
        """Return if there is no record: a second one would describe a host that was changed meanwhile.

        Raises:
            UsageError: there is one.
        """
        if self.archive.exists():
            remedy = (
                f"give the host back with `testbed host restore {self.host}`, "
                f"or give the record up with `testbed host forget {self.host}`"
            )
            fact = f"it was made {self.made:%Y-%m-%d %H:%M} UTC"
            raise UsageError(f"{self.host} has a record already", fact=fact, remedy=remedy)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and lock it against other processes during the block.

        Raises:
            LockedError: another process works with the record.
            MachineError: others can write into the state folder.
        """
        ownership.require_trust(self.root)
        make_folder(self.root / _FOLDER, OWNER)
        make_folder(self.folder, OWNER)
        path = self.folder / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                fact = f"another process has locked {path}"
                raise LockedError(
                    f"the record of {self.host} is in use", fact=fact, remedy="wait until it ends, or stop it"
                ) from error
            yield

    def keep(self, fetched: IO[bytes]) -> None:
        """Store a complete archive."""
        fetched.seek(0)
        with written(self.archive) as descriptor, os.fdopen(os.dup(descriptor), "wb") as stream:
            shutil.copyfileobj(fetched, stream, _COPY)
            stream.flush()
            os.fsync(descriptor)

    def settled(self) -> dict[str, str] | None:
        """Return the runs of units that a restore has started again; None if no restore has begun.

        Raises:
            ProvisioningError: the journal cannot be read.
        """
        if not self.journal.exists():
            return None
        try:
            told = json.loads(self.journal.read_bytes())
            return {str(name): str(run) for name, run in told.items()}
        except (ValueError, AttributeError) as error:
            remedy = f"remove {self.journal}, and repeat the command"
            raise ProvisioningError(
                f"the journal of {self.host} cannot be read", fact=str(error), remedy=remedy
            ) from error

    def settle(self, runs: dict[str, str]) -> None:
        """Write down that a restore has begun, and which runs of units it has started."""
        write_secret(self.journal, json.dumps(runs).encode())

    def remove(self) -> None:
        """Remove the record and all copies in it."""
        remove_tree(self.folder)


def recorded(root: Path) -> list[Record]:
    """Return all complete records of a state folder, by name."""
    names = sorted(
        path.parent.name.removesuffix(_END) for path in root.glob(f"{_FOLDER}/*{_END}/record.tar.gz")
    )
    return [Record(root, name) for name in names if _NAME.fullmatch(name)]
