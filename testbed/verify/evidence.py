"""Records every observation behind a verdict at the moment it is made (D11)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.drivers.host.private_files import OWNER, make_folder, write_secret

_KEPT = 20_000


class Evidence:
    """Collects observations; each check run gets its own, and those it shares with others."""

    def __init__(self, folder: Path) -> None:
        for path in (folder.parent, folder):
            if not path.exists():
                make_folder(path, OWNER)
        self._folder = folder
        self._entries: list[dict[str, object]] = []
        self._lock = threading.Lock()

    @property
    def run(self) -> str:
        """Name of the run that the evidence belongs to."""
        return self._folder.parent.name

    def separate(self) -> Evidence:
        """Return another collector that writes into the same folder."""
        return Evidence(self._folder)

    def record(self, host: str, kind: str, request: str, answer: object, started: float) -> None:
        """Record one observation; texts are cut at 20,000 characters.

        Args:
            started: wall-clock time at which it began, in seconds since the epoch.
        """
        entry: dict[str, object] = {
            "time": round(started, 3),
            "duration_s": round(time.time() - started, 3),
            "host": host,
            "kind": kind,
            "request": request[:_KEPT],
            "answer": answer[:_KEPT] if isinstance(answer, str) else answer,
        }
        with self._lock:
            self._entries.append(entry)

    def share(self, entries: list[dict[str, object]]) -> None:
        """Add earlier observations to those of the present check."""
        with self._lock:
            self._entries += [entry for entry in entries if entry not in self._entries]

    @property
    def entries(self) -> list[dict[str, object]]:
        """Observations of the present check."""
        with self._lock:
            return list(self._entries)

    @contextmanager
    def of(self, name: str) -> Iterator[list[str]]:
        """Collect for one run of one check.

        The yielded list receives the name of the file, if one is written.
        """
        with self._lock:
            self._entries = []
        written: list[str] = []
        try:
            yield written
        finally:
            entries = self.entries
            if entries:
                path = self._free(name)
                lines = (json.dumps(entry, default=str) + "\n" for entry in entries)
                write_secret(path, "".join(lines).encode())
                written.append(f"{self._folder.name}/{path.name}")

    def _free(self, name: str) -> Path:
        for number in range(1, 1000):
            path = self._folder / f"{name}.{number}.jsonl"
            if not path.exists():
                return path
        raise FileExistsError(name)
