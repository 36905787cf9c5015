"""What a machine has written to its serial console, as a sign of progress."""

from __future__ import annotations

from pathlib import Path

from testbed.untrusted.text import line

_TAIL = 400  # octets


def console_progress(console: Path) -> str:
    """Return the size of a console's file and its last line, which the machine may choose.

    It is empty if the file cannot be read.
    """
    try:
        with console.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL))
            lines = stream.read(_TAIL).decode(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((item for item in map(line, reversed(lines)) if item), "nothing")
    return f"console of {size} octets, last line: {last}"
