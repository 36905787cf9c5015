"""An answer from a guest or a node gets its form, or an error that shows nothing of it."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from testbed.untrusted.answers import formed

FORM = TypeAdapter(dict[str, int])


def test_an_answer_in_its_form_is_returned() -> None:
    assert formed(FORM, {"frames": 3}) == {"frames": 3}


def test_an_error_names_the_first_mistakes_and_nothing_of_the_answer() -> None:
    with pytest.raises(ValueError, match="int_parsing") as caught:
        formed(FORM, dict.fromkeys("abc", "\n::error::secret"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("int_parsing") == 2
