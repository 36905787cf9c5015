"""Earlier readings that `testbed inventory --against` takes, and files that it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.cli.inventory import _earlier
from testbed.errors import UsageError
from testbed.inventory.records import FORMAT

HEAD = {"format": FORMAT, "lab": "x", "machines": ["node"], "records": 1, "errors": {}}
RECORD = {"machine": "node", "domain": "unit", "key": "a", "value": {"b": 1}}


def test_a_reading_is_taken_machine_by_machine(tmp_path: Path) -> None:
    file = tmp_path / "reading"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in (HEAD, RECORD)))
    assert {name: found.records for name, found in _earlier(file).items()} == {
        "node": {("unit", "a"): {"b": 1}}
    }


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ([],),
        (HEAD,),
        ({**HEAD, "format": FORMAT + 1}, RECORD),
        ({**HEAD, "machines": []}, RECORD),
        (HEAD, {"domain": "unit"}),
        (HEAD, {"machine": "node", "domain": "unit", "key": "a"}),
        ({**HEAD, "records": 2}, RECORD, RECORD),
    ],
)
def test_a_file_that_holds_no_reading_is_refused_in_three_parts(
    lines: tuple[object, ...], tmp_path: Path
) -> None:
    file = tmp_path / "reading"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(UsageError) as caught:
        _earlier(file)
    assert caught.value.fact
    assert "--json" in caught.value.remedy
    assert "holds no inventory" in caught.value.what


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no inventory"):
        _earlier(tmp_path / "absent")
