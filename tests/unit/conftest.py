"""Fixtures that several files of tests use."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fake_checks import run_body


@pytest.fixture
def judge(tmp_path: Path) -> Any:
    """Run the checks of a text against a fleet without machines."""
    return partial(run_body, tmp_path)
