"""Paths of the folders of playbooks, checks and example topologies.

They are in the checkout, or below ``share/testbed`` of an installed package.
"""

from __future__ import annotations

import sys
from pathlib import Path

from testbed.errors import MachineError


def _folder(name: str) -> Path:
    for root in (Path(__file__).resolve().parents[1], Path(sys.prefix) / "share/testbed"):
        if (root / name).is_dir():
            return root / name
    fact = f"neither a checkout nor {sys.prefix}/share/testbed has the folder {name}"
    raise MachineError("the installation is incomplete", fact=fact, remedy="install the package again")


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
