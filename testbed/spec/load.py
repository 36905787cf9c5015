"""From text to a `Spec`, or to every mistake of the file in one pass.

A value that the schema refuses is cut out, and the rules still run on what is left; so one wrong unit
does not hide a dangling reference. No disk, no network: `read` is the one function that opens a file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path as File

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from testbed.errors import Mistake, TestbedError, TopologyError, UsageError
from testbed.garbage import uncollected
from testbed.spec import rules
from testbed.spec.document import Document, Path, Value, at, dotted, parse
from testbed.spec.schema import (
    NAME_RULE,
    ControllerSpec,
    GuestSpec,
    InfrastructureSpec,
    LimitsSpec,
    NodeSpec,
    Spec,
    TenantSpec,
)

_PLACEHOLDERS: dict[Path, Value] = {("name",): "cut", ("version",): 1}
_PLACES: tuple[tuple[tuple[str | None, ...], type[BaseModel]], ...] = (
    ((), Spec),
    (("controller",), ControllerSpec),
    (("infrastructure",), InfrastructureSpec),
    (("nodes", None), NodeSpec),
    (("tenants", None), TenantSpec),
    (("tenants", None, "guests", None), GuestSpec),
    (("tenants", None, "limits"), LimitsSpec),
    (("tenants", None, "guests", None, "limits"), LimitsSpec),
)


@dataclass(frozen=True, slots=True)
class Topology:
    """A valid file: what it says, and where it says it.

    Args:
        file: path as the user gave it.
        spec: the content.
        document: the lines of the content.

    """

    file: str
    spec: Spec
    document: Document


def read(file: File, *, machine_memory: int | None = None) -> Topology:
    """Read a topology file.

    Args:
        file: path of a YAML file.
        machine_memory: RAM of the outer machine in bytes, to refuse a lab that cannot fit; None skips that rule.

    Raises:
        UsageError: the file cannot be read.
        TopologyError: the file is not a usable topology; it holds every mistake.

    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # what is no text, or no path
        raise _unreadable(file, error) from error
    return load(text, str(file), machine_memory=machine_memory)


def _unreadable(file: File, error: Exception) -> TestbedError:
    fact = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    neighbours = sorted(str(path) for path in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
    near = get_close_matches(str(file), neighbours, n=1)
    remedy = f"did you mean {near[0]}?" if near else "give the path of a topology file, such as topologies/two-tenants.yaml"
    return UsageError(f"cannot read the topology {file}", fact=fact, remedy=remedy)


@uncollected()
def load(text: str, file: str, *, machine_memory: int | None = None) -> Topology:
    """Return the topology that a text describes; see `read`."""
    document = parse(text)
    mistakes = list(document.mistakes)
    if document.data is None and not mistakes:
        mistakes.append(Mistake(1, "", "the file is empty", "start with 'version: 1', a name, nodes and tenants"))
    spec: Spec | None = None
    if document.data is not None:
        spec, found = _validate(document)
        mistakes += found
    if spec is not None:
        declared = rules.Declared.of(document.data)
        for path, fact, remedy in rules.check(spec, declared, machine_memory=machine_memory):
            mistakes.append(Mistake(document.line(path), dotted(path), fact, remedy))
    if mistakes or spec is None:
        raise TopologyError(file, mistakes)
    return Topology(file, spec, document)


def _validate(document: Document) -> tuple[Spec | None, list[Mistake]]:
    data = document.data
    mistakes: dict[Path, Mistake] = {}
    for _ in range(20):
        try:
            return Spec.model_validate(data), list(mistakes.values())
        except ValidationError as error:
            details = error.errors(include_url=False)
            for detail in details:
                if not (mistakes and detail["type"] in ("too_short", "missing") and at(document.data, _place(detail))):
                    mistakes.setdefault(_place(detail), _mistake(detail, document))
            data = copy.deepcopy(data)
            if not all([_cut(data, _place(detail)) for detail in details]):  # noqa: C419 - every one must be cut
                break
    return None, list(mistakes.values())


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
        parent[last] = rules.CUT_FLOW
        return True
    return False


def _mistake(detail: ErrorDetails, document: Document) -> Mistake:
    place = _place(detail)
    fact, remedy = _explain(detail, place)
    return Mistake(document.line(place), dotted(place), fact, remedy)


def _explain(detail: ErrorDetails, place: Path) -> tuple[str, str]:
    name = place[-1] if place else ""
    kind = detail["type"]
    if kind == "extra_forbidden":
        allowed = _keys(place[:-1])
        return f"the key '{name}' is not known here", rules.among(str(name), allowed)
    if kind == "missing":
        return f"the key '{name}' is missing", f"add '{name}:'"
    if kind == "string_pattern_mismatch":
        return f"'{detail['input']}' is not a possible name", NAME_RULE
    if kind == "too_short":
        return "nothing is declared here", "declare at least one"
    if kind == "value_error":
        fact, _, remedy = str(detail["ctx"]["error"]).partition("; ")
        return fact, remedy or "see the example files in topologies/"
    return f"{detail['input']!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}", "see the example files in topologies/"


def _keys(place: Path) -> Sequence[str]:
    for pattern, model in _PLACES:
        if len(pattern) == len(place) and all(
            part is None or part == found for part, found in zip(pattern, place, strict=True)
        ):
            return tuple(model.model_fields)
    return ()
