"""The journal of open breaches of a lab.

Each breach is recorded before it opens, so that a record remains if the process is killed.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from testbed.drivers.host.workspace import Workspace
from testbed.errors import ProvisioningError

_LIMIT = 64 * 1024  # octets of an entry


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one breach.

    Args:
        control: id of the control whose check declares the breach.
        case: machine of the check's case, or ``fleet``.
        breach: name of the breach.
        opened: time just before it was opened, as ISO 8601 text.
        run: name of the run of the checks that opened it.

    """

    control: str
    case: str
    breach: str
    opened: str
    run: str

    def __str__(self) -> str:
        return f"'{self.breach}' ({self.control}, {self.case}), opened {self.opened} by the run {self.run}"


@dataclass
class Entry:
    """One file of the journal.

    Args:
        file: path of the file.
        record: its content; None if it cannot be read.
        closed: whether the breach is known to be closed, so that the entry can be removed.

    """

    file: Path
    record: Record | None
    closed: bool = False

    def __str__(self) -> str:
        return str(self.record) if self.record else f"a breach whose entry {self.file} cannot be read"

    def data(self) -> dict[str, str]:
        """Return the entry as values for JSON."""
        return asdict(self.record) if self.record else {"breach": str(self)}


class Journal:
    """The journal of one lab, with one file for each entry.

    Several breaches of different machines may be open at the same time. Only the process that has locked the
    lab writes here.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._lab = workspace.lab
        self._folder = workspace.folder / "breaches"

    def entries(self) -> list[Entry]:
        """Return all entries, the oldest first and unreadable ones at the end."""
        found = [Entry(file, _read(file)) for file in sorted(self._folder.glob("*.json"))]
        return sorted(
            found, key=lambda entry: (entry.record is None, entry.record.opened if entry.record else "")
        )

    @property
    def used(self) -> bool:
        """Whether any breach was ever opened on this lab; what is left of it may still be seen."""
        return self._folder.exists()

    def require_closed(self) -> None:
        """Refuse a lab with recorded breaches: verdicts on it would mean nothing.

        Raises:
            ProvisioningError: the journal has entries; the error names each.

        """
        found = self.entries()
        if found:
            what = (
                f"the lab {self._lab} has {len(found)} wall{'s' * (len(found) > 1)} that a breach opened "
                "and nothing closed"
            )
            remedy = f"run `testbed up {self._lab}`, which closes what is open; no verdict counts before that"
            raise ProvisioningError(what, fact="; ".join(map(str, found)), remedy=remedy)

    @contextmanager
    def holding(self, control: str, case: str, breach: str, run: str) -> Iterator[Entry]:
        """Keep an entry on disk during the block, which opens and closes a breach.

        The entry is removed only if the block sets its ``closed``.

        Raises:
            ProvisioningError: the entry cannot be written; the block has not run.

        """
        record = Record(control, case, breach, datetime.now(UTC).isoformat(timespec="seconds"), run)
        try:
            entry = self._write(record)
        except OSError as error:
            what = f"the breach '{breach}' cannot be written down, so it is not opened"
            remedy = f"make room for files in {self._folder}"
            raise ProvisioningError(what, fact=f"{self._folder}: {error.strerror}", remedy=remedy) from error
        try:
            yield entry
        finally:
            if entry.closed:
                self.remove(entry)

    def _write(self, record: Record) -> Entry:
        """Write an entry; it is complete on disk when this returns."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        _sync(self._folder.parent)
        file = self._folder / f"{secrets.token_hex(8)}.json"
        partial = file.with_suffix(".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(record), stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(file)
        _sync(self._folder)
        return Entry(file, record)

    def remove(self, entry: Entry) -> None:
        """Remove an entry; a missing one is no error."""
        entry.file.unlink(missing_ok=True)
        _sync(self._folder)

    def sweep(self) -> None:
        """Remove partial entries of killed processes; their breaches were not opened yet."""
        for file in self._folder.glob("*.partial"):
            file.unlink(missing_ok=True)


def _read(file: Path) -> Record | None:
    """Return the record in a file; None if it is unreadable, and the opened breach unknown."""
    try:
        with file.open("rb") as stream:
            data = json.loads(stream.read(_LIMIT))
        return Record(**{name: str(data[name]) for name in Record.__slots__})
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _sync(folder: Path) -> None:
    """Write a folder's list of files to disk (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
