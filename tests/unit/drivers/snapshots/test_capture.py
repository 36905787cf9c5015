"""Waiting for a line on a machine's console."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from testbed.drivers.snapshots.capture import AWAKE, wait_for_line
from testbed.errors import ProvisioningError


@pytest.fixture
def console(tmp_path: Path) -> Path:
    file = tmp_path / "console.log"
    file.write_bytes(b"boot \xff\n")
    return file


def test_the_line_is_found_when_it_comes(console: Path) -> None:
    threading.Timer(0.2, lambda: console.write_text(f"boot\n{AWAKE}\n")).start()
    wait_for_line(console, AWAKE, 10, lambda: True)


@pytest.mark.parametrize(
    ("text", "runs", "timeout", "told"),
    [
        ("boot\n", True, 0.2, "not within 0 s; last progress: console of 5 octets, last line: boot"),
        ("boot\n", False, 10.0, "the machine has ended"),
        (
            "testbed: failed: no credential\n",
            True,
            10.0,
            "it has failed; its console ends with: testbed: failed: no credential",
        ),
    ],
)
def test_what_stands_in_the_way_is_told_at_once(
    console: Path, text: str, runs: bool, timeout: float, told: str
) -> None:
    console.write_text(text)
    start = time.monotonic()
    with pytest.raises(ProvisioningError) as caught:
        wait_for_line(console, AWAKE, timeout, lambda: runs)
    assert told in caught.value.fact
    assert time.monotonic() - start < 5


def test_a_console_that_goes_on_extends_the_time(console: Path) -> None:
    """A slow machine is no dead one: its line comes after three times the patience."""

    def boot() -> None:
        for number in range(12):
            time.sleep(0.1)
            console.write_text(console.read_text(errors="replace") + f"stage {number}\n")
        console.write_text(f"{console.read_text()}{AWAKE}\n")

    thread = threading.Thread(target=boot)
    thread.start()
    wait_for_line(console, AWAKE, 0.4, lambda: True)
    thread.join()
