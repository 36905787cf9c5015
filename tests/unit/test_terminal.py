"""What people read is what was said."""

from __future__ import annotations

import pytest

from testbed import terminal


@pytest.mark.parametrize("text", ["tap56a4e9dd . fd00:a:b4", "[bold]not bold[/bold]", "red/web :warning: :+1:"])
def test_nothing_that_is_said_is_taken_for_markup(text: str) -> None:
    with terminal.ERR.capture() as said:
        terminal.say(text)
    assert said.get().endswith(f" s  {text}\n")
