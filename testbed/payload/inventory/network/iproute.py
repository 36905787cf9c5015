"""Runs the tools of iproute2: several questions in one process, and answers as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread


def without(value: Any, names: Iterable[str]) -> Any:
    """Return a JSON value without some keys of its objects."""
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


def asked(records: Records, place: str, tool: list[str], questions: list[tuple[str, str]]) -> list[list[Any]]:
    """Return the objects that each command of a tool of iproute2 prints, from one process.

    If one fails, each is asked alone, so that the failure has the name of its domain.

    Args:
        questions: domain and command of each.

    """
    script = "".join(f"{command}\n" for _, command in questions)
    try:
        answers = programs.run_json([*tool, "-batch", "-"], script)
        if len(answers) == len(questions):
            return [_objects([answer]) for answer in answers]
    except Unread:
        pass
    found = []
    for domain, command in questions:
        try:
            text, whole = programs.run([*tool, *command.split()]), True
        except Unread as error:
            records.unread(domain, place, error)
            text, whole = error.output, False
        found.append(_objects(programs.values(text, whole=whole)))
    return found


def _objects(answers: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in answers:
        found += value if isinstance(value, list) else [value]
    return [item for item in found if item]
