"""Units that the image has, and that are loaded without running, because others name them. Pure."""

from __future__ import annotations

import re
from typing import Any

from testbed.inventory.records import Records

_IDLE = re.compile(r"(loaded|not-found|masked)( inactive( dead)?)?")
_CHANGED = "changed since the manager read them"


def idle(found: Records, golden: Records) -> dict[tuple[str, str], Any]:
    """Return new units that do not run, and all of whose files the golden reading has as well.

    A unit that runs is none of them, wherever its files are: to start one that the image has is a change.
    """
    known = {
        place.partition(" -> ")[0]
        for (domain, _), places in golden.items()
        if domain == "unit file" and isinstance(places, list)
        for place in places
    }
    return {
        at: unit
        for at, unit in found.items()
        if at[0] == "unit" and at not in golden and isinstance(unit, dict) and _is_idle(unit, known)
    }


def _is_idle(unit: dict[str, Any], known: set[str]) -> bool:
    files = unit.get("files", [])
    return (
        _IDLE.fullmatch(str(unit.get("states"))) is not None
        and _CHANGED not in unit
        and isinstance(files, list)
        and known.issuperset(files)
    )
