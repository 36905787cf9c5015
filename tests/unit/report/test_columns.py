"""Lines for a terminal: none is wider than its room."""

from __future__ import annotations

import pytest

from testbed.report.columns import cells, wrap


@pytest.mark.parametrize("width", range(2, 12))
def test_no_line_is_wider_than_its_room(width: int) -> None:
    for text in ("abcdefghijklm", "a bc def ghij klmno", "ab ab ab"):
        lines = wrap(text, width)
        assert max(map(cells, lines)) <= width
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
