"""What of a process is judged, in a form in which only its peculiarities are left. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_ALL, _NONE = "000001ffffffffff", "0000000000000000"  # sets of capabilities
# Properties that are judged, with the value of an ordinary service: the manager's child, root, in the first
# namespaces. A value that is ordinary is left out, so that each line of the list names what it grants.
ORDINARY: Mapping[str, Any] = MappingProxyType(
    {
        "uids": "0 0 0 0",
        "gids": "0 0 0 0",
        "groups": "",
        "permitted": _ALL,
        "effective": _ALL,
        "bounding": _ALL,
        "inheritable": _NONE,
        "ambient": _NONE,
        "no new privileges": "0",
        "seccomp": "0",
        "profile": "unconfined",
        "root": "/",
        "namespaces": {},
        "parent": "/init.scope /usr/lib/systemd/systemd",
        "program is its file": True,
        "mapped": [],
        "traced": False,
        "trouble": "",
    }
)
_NUMBER = re.compile(r" #\d+$")  # of records with the same name
_SHOWN = 700  # characters of the arguments that a key has


def peculiar(records: Mapping[str, Any]) -> dict[str, Any]:
    """Return processes by control group, program and arguments, each with what is not ordinary about it.

    Open files and sockets are left out: what listens is a record of its own, and files come and go.

    Args:
        records: values of the domain "process" by their keys.

    """
    found: dict[str, Any] = {}
    by_value = sorted(records.items(), key=lambda item: (_NUMBER.sub("", item[0]), json.dumps(item[1])))
    for key, value in by_value:
        name, kept = _named(_NUMBER.sub("", key), value), _peculiarities(value)
        names = (name, *(f"{name} #{number}" for number in range(2, len(records) + 1)))
        found[next(free for free in names if found.get(free, kept) == kept)] = kept
    return found


def _named(label: str, value: Any) -> str:  # noqa: ANN401 - JSON
    arguments = str(value.get("arguments", "")) if isinstance(value, dict) else ""
    return f"{label}: {arguments[:_SHOWN]}" if arguments else label


def _peculiarities(value: Any) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(value, dict):
        return value
    return {name: value.get(name) for name, usual in ORDINARY.items() if value.get(name) != usual}
