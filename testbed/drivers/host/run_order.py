"""The order of a lab's runs: by a number that only grows, since a clock can be set back."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from pathlib import Path

_NUMBERED = re.compile(r"(\d{6,})-\d{8}T\d{6}-[0-9a-f]+")


def place(folder: Path) -> tuple[int, str]:
    """Return what to sort the folders of runs by; those of older versions have no number, and come first."""
    found = _NUMBERED.fullmatch(folder.name)
    return (int(found[1]) if found else 0, folder.name)


def new_folder(runs: Path, started: datetime) -> Path:
    """Make the folder of a new run, behind all that are there. The lab must be locked.

    Raises:
        FileExistsError: another run made it meanwhile.

    """
    runs.mkdir(parents=True, exist_ok=True)
    number = 1 + max((place(folder)[0] for folder in runs.iterdir()), default=0)
    folder = runs / f"{number:06d}-{started:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    folder.mkdir()
    return folder
