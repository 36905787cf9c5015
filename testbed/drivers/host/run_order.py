"""Order of a lab's runs: by a number that only grows, since a clock can be set back."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from pathlib import Path

_NUMBERED = re.compile(r"(\d{6,})-\d{8}T\d{6}-[0-9a-f]+")


def place(folder: Path) -> tuple[int, str]:
    """Return the sort key of a run's folder; folders of older versions have number 0."""
    found = _NUMBERED.fullmatch(folder.name)
    return (int(found[1]) if found else 0, folder.name)


def new_folder(runs: Path, started: datetime) -> Path:
    """Make the folder of a new run, with the next number; the lab must be locked.

    Raises:
        FileExistsError: another run made it meanwhile.

    """
    runs.mkdir(parents=True, exist_ok=True)
    number = 1 + max((place(folder)[0] for folder in runs.iterdir()), default=0)
    folder = runs / f"{number:06d}-{started:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    folder.mkdir()
    return folder
