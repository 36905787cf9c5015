"""Skips the end-to-end tests whose turn it is not."""

from __future__ import annotations

import pytest

from tests.turns import TURNS, chosen


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
