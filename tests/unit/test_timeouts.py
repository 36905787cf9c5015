"""Timeouts: each has a reason and a use, and slowness stretches those that say so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testbed import timeouts
from testbed.timeouts import Timeout

ROOT = Path(__file__).parents[2]
NAMES = sorted(name for name, value in vars(timeouts).items() if isinstance(value, Timeout))
SOURCES = {
    path: path.read_text()
    for folder in ("testbed", "checks")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "timeouts.py"
}


@pytest.mark.parametrize("name", NAMES)
def test_each_timeout_has_a_reason_and_a_use(name: str) -> None:
    value = getattr(timeouts, name)
    assert value > 0
    assert len(value.reason) > 10
    assert any(f"timeouts.{name}" in text for text in SOURCES.values())


@pytest.mark.parametrize("name", NAMES)
def test_slowness_stretches_what_is_said_to_be_stretched_and_nothing_else(name: str) -> None:
    """By the source: its name, or a module's alias for it, is multiplied by the slowness."""
    found = False
    for text in SOURCES.values():
        own = [f"timeouts.{name}", *re.findall(rf"^(\w+) = timeouts\.{name}$", text, re.MULTILINE)]
        found |= any(re.search(rf"(?<![\w.]){re.escape(item)} \* [\w.]*slowness", text) for item in own)
    imported = {"LOGIN": "BOOT"}  # by places, from the client
    if name in imported:
        found = any(re.search(rf"\b{imported[name]} \* [\w.]*slowness", text) for text in SOURCES.values())
    assert found == getattr(timeouts, name).stretched


def test_a_timeout_is_a_number() -> None:
    assert Timeout(2, "a reason", stretched=True) * 1.5 == 3
    assert f"{Timeout(2, 'a reason'):.0f} {Timeout(2.5, 'a reason')!r}" == "2 2.5"
