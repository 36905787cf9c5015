"""Writes the page of the attack surface from testbed/inventory/surface.toml and docs/controls.md (PRO-01)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from docs.tools.catalogue import PAGE, Control, controls
from testbed.inventory import surface
from testbed.inventory.surface import KINDS, Accepted

_HEAD = """\
# Attack surface

What can be attacked on a machine of a lab, why it is there, and the controls that watch it. The list is the \
baseline of PRO-01: a change of a machine that adds a part must change `testbed/inventory/surface.toml` \
in the same commit, with a reason. `testbed inventory LAB --surface` prints the surface of running machines, \
and fails if a part is not in the list. A control in italics has no check yet.

`GUEST` stands for the name of a guest, `N` for a number that differs from start to start, and `MANAGEMENT` \
for the machine's address on the management plane."""
_TITLES = {
    "listener": "Sockets that listen",
    "privileged file": "Files that give rights to who starts them",
    "process": "Processes",
}


def page() -> str:
    """Return the page as Markdown.

    Raises:
        ValueError: an entry names a control that docs/controls.md does not have.

    """
    known = controls(PAGE.read_text())
    lines = [_HEAD]
    for role, parts in surface.baseline().items():
        for kind in KINDS:
            lines += ["", f"## {_TITLES[kind]}: {role}", ""]
            lines += ["| name | what it may do | why | controls |", "|---|---|---|---|"]
            lines += [
                f"| `{item.part.name}` | {item.part.detail} | {item.reason} | {_told(item.controls, known)} |"
                for item in _sorted(parts, kind)
            ]
    lines += [
        "",
        "## Programs that parse octets of a guest",
        "",
        "| where | what | controls |",
        "|---|---|---|",
    ]
    lines += [
        f"| {item.place} | {item.parses} | {_told(item.controls, known)} |" for item in surface.parsers()
    ]
    return "\n".join(lines)


def _told(ids: Iterable[str], known: Mapping[str, Control]) -> str:
    if unknown := sorted({*ids} - known.keys()):
        raise ValueError(f"docs/controls.md does not have {', '.join(unknown)}")
    return ", ".join(name if known[name].observation else f"*{name}*" for name in ids)


def _sorted(parts: Iterable[Accepted], kind: str) -> list[Accepted]:
    return sorted((item for item in parts if item.part.kind == kind), key=lambda item: item.part.name)
