"""Programs of the payload that attack on machines, with the libraries that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbed import payload
from testbed.verify.fleet import MachineView

_FOLDER = Path(payload.__file__).parent
_LIBRARIES = ("attacks.confinement", "attacks.attempts")


def collect(
    machine: MachineView, program: str, request: object, timeout: float = 120, package: str = "attacks"
) -> Any:  # noqa: ANN401 - JSON
    """Run a program and return the answer of its function ``collect``.

    Args:
        program: name of a module of that package of `testbed.payload`.
        timeout: seconds.

    Raises:
        InstrumentError: see `MachineView.python`.
    """
    text = (_FOLDER / package / f"{program}.py").read_text()
    return machine.python(text, request, timeout, function="collect", libraries=_LIBRARIES)
