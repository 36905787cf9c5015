"""Parse a topology file into a `Spec`, or report every mistake of the file at once.

A value that the schema refuses is cut out, and the rules still run on what is left; so one wrong unit
does not hide a dangling reference. No disk, no network: `read` is the one function that opens a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path as File

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from testbed.errors import Mistake, TestbedError, TopologyError, UsageError
from testbed.gc_pause import gc_disabled
from testbed.topology_file import validation
from testbed.topology_file.schema import (
    NAME_RULE,
    ControllerSpec,
    GuestSpec,
    InfrastructureSpec,
    LimitsSpec,
    NodeSpec,
    Spec,
    TenantSpec,
    VolumeSpec,
)
from testbed.topology_file.yaml_source import Document, Limit, Path, Value, at, dotted, parse, shown

_ENOUGH = 1000  # findings of the rules at most; twenty are shown, the others are not looked for
_PLACEHOLDERS: dict[Path, Value] = {("name",): "cut", ("version",): 1}
_PLACES: tuple[tuple[tuple[str | None, ...], type[BaseModel]], ...] = (
    ((), Spec),
    (("controller",), ControllerSpec),
    (("infrastructure",), InfrastructureSpec),
    (("nodes", None), NodeSpec),
    (("tenants", None), TenantSpec),
    (("tenants", None, "guests", None), GuestSpec),
    (("tenants", None, "guests", None, "volumes", None), VolumeSpec),
    (("tenants", None, "limits"), LimitsSpec),
    (("tenants", None, "guests", None, "limits"), LimitsSpec),
)


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A valid file: its content, and the line of each part of it.

    Args:
        file: path as the user gave it.
        spec: the content.
        document: the lines of the content.
        text: all of it, as it was read.

    """

    file: str
    spec: Spec
    document: Document
    text: str = ""


def read(file: File, *, machine_memory: int | None = None) -> ParsedFile:
    """Read a topology file.

    Args:
        file: path of a YAML file; ``-`` stands for standard input.
        machine_memory: RAM of the outer machine in bytes, to refuse a lab that cannot fit; None skips that
            rule.

    Raises:
        UsageError: the file cannot be read.
        TopologyError: the file is not a usable topology; it holds every mistake.

    """
    try:
        name = os.dup(sys.stdin.fileno() if sys.stdin else 0) if str(file) == "-" else file
        with open(name, encoding="utf-8") as opened:  # noqa: PTH123 - a number as well
            text = opened.read(Limit.CHARACTERS + 1)  # a device or a pipe may never end
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not a path
        raise _unreadable(file, error) from error
    return load(text, "standard input" if str(file) == "-" else str(file), machine_memory=machine_memory)


def _unreadable(file: File, error: Exception) -> TestbedError:
    fact = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    neighbours: list[str] = []
    with suppress(OSError, ValueError):  # not a folder, not readable, or not a valid name
        neighbours = sorted(str(path) for path in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
    near = get_close_matches(str(file), neighbours, n=1)
    remedy = (
        f"did you mean {near[0]}?"
        if near
        else "give the path of a topology file, such as topologies/two-tenants.yaml"
    )
    return UsageError(f"cannot read the topology {file}", fact=fact, remedy=remedy)


@gc_disabled()
def load(text: str, file: str, *, machine_memory: int | None = None) -> ParsedFile:
    """Return the topology that a text describes; arguments and errors are those of `read`."""
    document = parse(text)
    mistakes = list(document.mistakes)
    if document.data is None and not mistakes:
        mistakes.append(
            Mistake(1, "", "the file is empty", "start with 'version: 1', a name, nodes and tenants")
        )
    spec: Spec | None = None
    if document.data is not None:
        spec, found = _validate(document)
        mistakes += found
    if spec is not None:
        declared = validation.Declared.of(document.data)
        findings = islice(validation.check(spec, declared, machine_memory=machine_memory), _ENOUGH)
        mistakes += [
            Mistake(document.line(path), dotted(path), fact, remedy) for path, fact, remedy in findings
        ]
    if mistakes or spec is None:
        raise TopologyError(file, mistakes)
    return ParsedFile(file, spec, document, text)


def _validate(document: Document) -> tuple[Spec | None, list[Mistake]]:
    data = _unshared(document.data)
    mistakes = _without_unknown_keys(data, document)
    for _ in range(2 * len(_PLACES)):
        try:
            return Spec.model_validate(data), list(mistakes.values())
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=True)
            for detail in details:
                if not (
                    mistakes
                    and detail["type"] in ("too_short", "missing")
                    and at(document.data, _place(detail))
                ):
                    mistakes.setdefault(_place(detail), _mistake(detail, document))
            if not all([_cut(data, _place(detail)) for detail in details]):  # noqa: C419 - every one must be cut
                break
    return None, list(mistakes.values())


def _unshared(value: Value) -> Value:
    """Return a copy without shared objects, so that each use of an alias can be cut separately."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _without_unknown_keys(data: Value, document: Document) -> dict[Path, Mistake]:
    """Remove the keys that the format does not have, and return a mistake for each.

    Done before pydantic runs, because each of its errors takes a kilobyte of memory.
    """
    mistakes: dict[Path, Mistake] = {}
    for pattern, model in _PLACES:
        known = frozenset(model.model_fields)
        for place, value in _matching(data, pattern):
            for name in [key for key in value if key not in known]:
                del value[name]
                near = (
                    known if len(mistakes) < _ENOUGH else ()
                )  # the nearest of some names takes 50 microseconds
                fact, remedy = f"the key {shown(name)} is not known here", _instead_of(name, near)
                mistakes[(*place, name)] = Mistake(
                    document.line((*place, name)), dotted((*place, name)), fact, remedy
                )
    return mistakes


def _matching(
    value: Value, pattern: tuple[str | None, ...], place: Path = ()
) -> Iterator[tuple[Path, dict[str, Value]]]:
    """Yield each mapping at the places that a pattern names, where None stands for any key."""
    if not isinstance(value, dict):
        return
    if not pattern:
        yield place, value
        return
    for key in list(value) if pattern[0] is None else [pattern[0]]:
        yield from _matching(value.get(key), pattern[1:], (*place, key))


def _instead_of(name: str, known: Iterable[str]) -> str:
    if name.startswith("x-"):
        return "remove it: the format has no extension keys; a comment begins with '#'"
    return validation.among(name, known)


def _place(detail: ErrorDetails) -> Path:
    place = detail["loc"]
    return place[:-1] if place[-1:] == ("[key]",) else place


def _cut(data: Value, place: Path) -> bool:
    """Remove a refused value so that the rest can be validated; False if that cannot help."""
    if place in _PLACEHOLDERS and isinstance(data, dict):
        data[str(place[0])] = _PLACEHOLDERS[place]
        return True
    parent = at(data, place[:-1])
    last = place[-1] if place else None
    if isinstance(parent, dict) and last in parent:
        del parent[str(last)]
        return True
    if isinstance(parent, list) and isinstance(last, int) and last < len(parent):
        parent[last] = validation.CUT_FLOW
        return True
    return False


def _mistake(detail: ErrorDetails, document: Document) -> Mistake:
    place = _place(detail)
    fact, remedy = _explain(detail, place)
    return Mistake(document.line(place), dotted(place), fact, remedy)


_KINDS = {
    "model_type": "a mapping", "dict_type": "a mapping", "list_type": "a list", "string_type": "text",
    "int_type": "a whole number", "literal_error": "1",
}  # fmt: skip


def _explain(detail: ErrorDetails, place: Path) -> tuple[str, str]:  # noqa: PLR0911 - a table of kinds
    """Return a fact and a remedy in words of the format; those of pydantic are about Python."""
    name, kind, found = (place[-1] if place else ""), detail["type"], detail["input"]
    context = detail.get("ctx", {})
    match kind:
        case "missing":
            return f"the key '{name}' is missing", f"add '{name}:'"
        case "string_pattern_mismatch":
            remedy = "write the name itself: the format has no variables" if "${" in str(found) else NAME_RULE
            return f"{shown(found)} is not a possible name", remedy
        case "too_short":
            return "nothing is declared here", "declare at least one"
        case "too_long":
            return f"{len(found)} are declared here", f"declare at most {context['max_length']}"
        case "greater_than_equal" | "less_than_equal":
            bound = (
                f"at least {context['ge']}" if kind == "greater_than_equal" else f"at most {context['le']}"
            )
            return f"{shown(found)} is out of range", f"write a whole number of {bound}"
        case "value_error":
            fact, _, remedy = str(context["error"]).partition("; ")
            return fact, remedy or "see the example files in topologies/"
    expected = _KINDS.get(kind, "another value")
    return (
        f"{shown(found)} stands where {expected} belongs",
        f"write {expected}; see the example files in topologies/",
    )
