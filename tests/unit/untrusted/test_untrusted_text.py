"""Text from guests, nodes and files is obeyed by nobody, and JSON from them stays within bounds."""

from __future__ import annotations

import json
import time
import tracemalloc
import unicodedata

import pytest

from testbed.untrusted import bounded_json, text

OBEYED = [
    "\x1b[31m",
    "\x1b]8;;http://x\x07",
    "\x9b31m",
    "\r",
    "\x08",
    "\x00",
    "\x7f",
    "\x85",
    "\u2028",
    "\u2029",
    "\x0b",
    "\x0c",
    "\u202e",
    "\u2066",
    "\u200b",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\ud800",
    "\udcff",
    "\U000e0041",
    "\ufe0f",
    "\u3164",
    "\u115f",
    "\u2800",
    "\uffff",
    "\u0378",
    "\ue000",
    "\u034f",
]


@pytest.mark.parametrize("part", OBEYED, ids=ascii)
def test_what_is_obeyed_or_invisible_is_replaced(part: str) -> None:
    shown = text.clean(f"a{part}b")
    assert part[0] not in shown
    assert shown.startswith("a\ufffd")
    assert shown.endswith("b")
    shown.encode()


def test_what_people_write_stays() -> None:
    plain = "über 10 % – „naïve“ 日本 𝄞 [x] \\[y] {z} `q`\n\tné\u0301e"
    assert text.clean(plain) == plain
    assert text.clean("a\r\nb") == "a\nb"


def test_marks_do_not_pile_up() -> None:
    shown = text.clean("a" + "\u0300" * 500 + "b")
    assert sum(unicodedata.category(item) == "Mn" for item in shown) == 3


@pytest.mark.parametrize(
    "command", ["##vso[task.setvariable x]", "##teamcity[buildStop]", "##[error]", "####[group]", "##VSO[x]"]
)
def test_no_command_to_a_ci_system_is_left_anywhere(command: str) -> None:
    for function in (text.clean, text.line, text.block, lambda given: text.passed_on(given.encode())):
        shown = function(f"said {command}")
        assert "##vso[" not in shown.lower()
        assert "##teamcity[" not in shown
        assert "##[" not in shown


SPOKEN = "first\n::error::x\n  \t::warning::y\n\n::add-mask::z\nlast"


def test_lines_of_a_message_stand_behind_a_bar() -> None:
    first, *rest = text.block(SPOKEN).split("\n")
    assert first == "first"
    assert all(item.startswith("  |") for item in rest)
    assert text.barred(SPOKEN, 2) == ["| first", "| ::error::x"]
    assert "\n" not in text.line(SPOKEN)


def test_what_somebody_asked_for_keeps_its_lines_and_speaks_to_nobody() -> None:
    shown = text.passed_on(SPOKEN.encode())
    assert not any(item.lstrip().startswith("::") for item in shown.split("\n"))
    assert shown.replace("| ", "") == SPOKEN
    assert text.passed_on(b"--- a\n+++ b\n::x") == "--- a\n+++ b\n| ::x"


def test_length_is_bounded_and_told() -> None:
    assert len(text.clean("x" * 10**7)) < text.SIZE + 20
    assert len(text.line("x" * 10**6)) < text.LINE + 20
    assert text.line("x" * 10**6).endswith("(cut)")
    block = text.block("x\n" * 10**6)
    assert len(block.split("\n")) == text.LINES + 1
    assert block.endswith("(cut)")


@pytest.mark.parametrize("part", ["\n", " ", "##", "##a", "::", "\n ::", "\u0300", "\x00", "[", "\u202e\n"])
def test_no_text_is_slow(part: str) -> None:
    began = time.process_time()
    given = part * (2 * 10**6 // len(part))
    text.passed_on(given.encode())
    text.line(given)
    text.block(given)
    assert time.process_time() - began < 5


def test_json_is_read_as_json() -> None:
    value = {"a": [1, -2, 3.5, True, None, 'x"{[,]}\\', "ä", "𝄞"], "b": {"c": []}}
    assert bounded_json.read(json.dumps(value)) == value
    assert bounded_json.read(json.dumps(value, ensure_ascii=False).encode()) == value


def _lists(depth: int) -> str:
    return "[" * depth + "]" * depth


BOMBS = {
    "lists": "[" + "[]," * 1_300_000 + "[]]",
    "objects": "[" + "{}," * 1_300_000 + "{}]",
    "numbers": "[" + "1," * 2_000_000 + "1]",
    "keys": "{" + ",".join(f'"{number}":1' for number in range(400_000)) + "}",
    "texts": "[" + '"",' * 1_300_000 + '""]',
    "texts without commas": '""' * 2_000_000,
    "one text without an end": '"' + '\\"' * 2_000_000,
    "quotes in a text": '"' + '\\"' * 600_000,
    "one step too deep": _lists(bounded_json.DEPTH + 1),
    "very deep": _lists(100_000),
    "open": "[" * 1_000_000,
    "long": '"' + "x" * bounded_json.OCTETS + '"',
    "digits": "1" * 4000,
    "beyond": str(2**53 + 1),
    "infinite": "1e999",
    "nan": "[NaN]",
    "Infinity": "-Infinity",
    "half a character": '["\\ud800"]',
    "no utf-8": b"\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_json_beyond_the_bounds_is_refused_soon_and_without_memory(name: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ValueError, match=r"."):
            bounded_json.read(BOMBS[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5
    assert peak < 60 * 2**20


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, -1, 2**63, float("nan"), [1]])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no whole number"):
        bounded_json.whole(value)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), -0.5, [1.0]])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no number"):
        bounded_json.real(value)


def test_numbers_within_bounds_are_given_back() -> None:
    assert (bounded_json.whole(7), bounded_json.real(7), bounded_json.real(0.5)) == (7, 7.0, 0.5)
