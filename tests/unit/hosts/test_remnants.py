"""What is left of a removed guest, and whether a look could see it (RES-02)."""

from __future__ import annotations

import pytest

from testbed.hosts.remnants import ON_A_NODE, ON_THE_CONTROLLER, Remnant, in_words, parsed, require_seen
from testbed.hosts.rules import UnseenError


def test_an_answer_is_parsed_and_told() -> None:
    found = parsed({"found": [["file", "/run/x\n::error::"]]})
    assert found == (Remnant("file", "/run/x\n::error::"),)
    (told,) = in_words("node-a", found)
    assert told.startswith("node-a: file /run/x")
    assert "\n" not in told


@pytest.mark.parametrize(
    "answer",
    [None, {}, {"found": [["file"]]}, {"found": [["file", 1]]}, {"found": [["file", "x" * 401]]}],
)
def test_another_form_is_no_answer(answer: object) -> None:
    with pytest.raises(UnseenError):
        parsed(answer)


@pytest.mark.parametrize("kinds", [ON_A_NODE, ON_THE_CONTROLLER])
def test_a_look_that_misses_a_kind_of_a_running_guest_is_blind(kinds: frozenset[str]) -> None:
    whole = [Remnant(kind, "x") for kind in kinds]
    require_seen([*whole, Remnant("content", "x")], kinds)
    for one in whole:
        with pytest.raises(UnseenError, match=one.kind):
            require_seen([item for item in whole if item != one], kinds)
