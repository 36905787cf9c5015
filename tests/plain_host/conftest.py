"""One disk for all machines: each starts from it, and writes beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .machine import make_disk


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    make_disk(folder)
    return folder
