"""Skips the end-to-end tests whose turn it is not, and names the checks that took longest."""

from __future__ import annotations

import pytest

from tests.lab_commands import LOOKS
from tests.turns import TURNS, chosen

_SLOWEST = 25


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of other turns; a mark that names no turn is an error."""
    mine = chosen().turns
    for item in items:
        mark = item.get_closest_marker("turn")
        if mark is None:
            continue
        unknown = set(mark.args) - {*TURNS}
        if unknown or not mark.args:
            raise pytest.UsageError(f"{item.nodeid}: its turn is none of {', '.join(TURNS)}")
        if not {*mark.args} & {*mine}:
            item.add_marker(pytest.mark.skip(reason=f"it is the turn of {', '.join(mine)}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the longest looks: a run of all tests has a limit, and they take most of it."""
    if LOOKS:
        terminalreporter.section("looks")
        for seconds, name in sorted(LOOKS, reverse=True)[:_SLOWEST]:
            terminalreporter.write_line(f"{seconds:6.1f} s  {name}")
