"""Where playbooks, checks and example topologies are: in a checkout, or next to an installed package."""

from __future__ import annotations

import sys
from pathlib import Path

from testbed.errors import MachineError


def _folder(name: str) -> Path:
    for root in (Path(__file__).resolve().parents[1], Path(sys.prefix) / "share/testbed"):
        if (root / name).is_dir():
            return root / name
    fact = f"neither a checkout nor {sys.prefix}/share/testbed has the folder {name}"
    raise MachineError("the installation is incomplete", fact=fact, remedy="install the package anew")


def playbooks() -> Path:
    """Return the folder of the playbooks.

    Raises:
        MachineError: the installation is incomplete.

    """
    return _folder("playbooks")


def checks() -> Path:
    """Return the folder of the checks; raises like `playbooks`."""
    return _folder("checks")


def topologies() -> Path:
    """Return the folder of the example topologies; raises like `playbooks`."""
    return _folder("topologies")
