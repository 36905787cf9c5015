"""Chooses the end-to-end tests of a run: all of them take longer than a pipeline may.

Every run builds a lab, asks every check and proves a part of them. The other tests take turns: the tested
commit decides. ``TESTBED_TURN`` names another turn, or is ``all``.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

TURNS = ("damage", "people", "judges", "separated", "udp-and-icmp")
_PARTS = 8
_ALL = "all"
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run is to do.

    Args:
        turns: those whose tests run.
        part: share of the checks that are proven, as `check --part` reads it.
    """

    turns: tuple[str, ...]
    part: str


def choose(wanted: str, commit: str) -> Choice:
    """Return what a run is to do.

    Args:
        wanted: name of a turn, "all", or the empty string.
        commit: hexadecimal name of the tested commit; empty outside a repository.

    Raises:
        ValueError: there is no such turn.
    """
    number = int(commit or "0", 16)
    part = f"{number // len(TURNS) % _PARTS + 1}/{_PARTS}"
    if wanted == _ALL:
        return Choice(TURNS, "1/1")
    if wanted and wanted not in TURNS:
        raise ValueError(f"TESTBED_TURN={wanted} is none of {', '.join((*TURNS, _ALL))}")
    return Choice((wanted or TURNS[number % len(TURNS)],), part)


def chosen() -> Choice:
    """Return what this run is to do.

    Raises:
        ValueError: TESTBED_TURN names no turn.
    """
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    return choose(os.environ.get("TESTBED_TURN", ""), done.stdout.strip())
