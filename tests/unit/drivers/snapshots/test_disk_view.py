"""The answer of the program that reads a machine's disk; a hostile disk may have taken it over."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.drivers.snapshots import disk_view
from testbed.drivers.snapshots.disk_view import DiskChanges

GOOD: dict[str, Any] = {
    "changed": {"/new": {"type": "file", "mode": "0644", "owner": "0:0", "size": 3, "changed": 5}},
    "altered": ["/below"],
    "inodes": 7,
    "written": 9,
}


def test_a_good_answer_is_taken() -> None:
    assert disk_view._parsed(GOOD) == DiskChanges(GOOD["changed"], ("/below",), 7, 9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"changed": []},
        {"changed": {"/new": {"type": "file"}}},
        {"changed": {"/new": {"changed": -1}}},
        {"changed": {"/new": {"changed": 1, "size": "3"}}},
        {"changed": {"/new": None}},
        {"altered": "/below"},
        {"inodes": True},
        {"written": None},
        {"written": 2**60},
    ],
)
def test_an_answer_of_another_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        disk_view._parsed(GOOD | wrong)
