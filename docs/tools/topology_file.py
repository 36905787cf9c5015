"""Writes the reference page of topology files from the pydantic models of the schema."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from testbed.spec import rules
from testbed.spec.schema import NAME_RULE, LimitsSpec, Spec, format_size

EXAMPLE = Path(__file__).parents[2] / "topologies/three-tenants-dual-stack.yaml"
# Type and unit by the name of the function that reads the text.
_READ_BY = {
    "parse_size": ("size", "KiB, MiB, GiB"),
    "parse_bandwidth": ("bandwidth", "kbit/s, Mbit/s, Gbit/s"),
    "parse_packets": ("packet rate", "packets per second"),
    "_network_text": ("IPv4 range", ""),
    "parse": ("IPv4 range, or a list of it and an IPv6 range", ""),
}
_UNITS = {"connections": "connections", "vcpus": "virtual CPUs"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a mapping of the file, ready to be printed."""

    name: str
    kind: str
    default: str
    unit: str
    limits: str
    example: str
    meaning: str


def page() -> str:
    """Return the page as Markdown."""
    lines = [
        "# Topology file",
        "",
        "A topology file is YAML. Unknown keys are refused. `testbed validate FILE` reports every mistake in one pass,",
        "`testbed validate --schema` prints the JSON Schema for editors.",
        "",
        f"A *name* must {NAME_RULE}.",
        "A *size* is a whole number and a unit, as in `64 MiB`.",
        "A *flow* is one line, `source -> target service`, where the service is `tcp/PORT`, `udp/PORT` or `icmp`.",
        "",
    ]
    for place, model in _models("", Spec):
        lines += [f"## {place or 'Top level'}", "", _first_line(model), ""]
        lines += ["| key | type | default | unit | limits | example | meaning |", "|---|---|---|---|---|---|---|"]
        lines += [
            f"| `{key.name}` | {key.kind} | {key.default} | {key.unit} | {key.limits} | {key.example} | {key.meaning} |"
            for key in _keys(model)
        ]
        lines.append("")
    lines += [*_rules(), "## Example", "", f"`topologies/{EXAMPLE.name}`:", "", "```yaml", EXAMPLE.read_text().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _models(place: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every mapping of the file, with its place, from the top down."""
    yield place, model
    for name, field in model.model_fields.items():
        for found, below in _nested(field.annotation):
            where = f"{place}.{name}".lstrip(".") + (".NAME" if below else "")
            yield from _models(where, found)


def _nested(annotation: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation, False
    elif get_origin(annotation) is dict:
        value = get_args(annotation)[1]
        if inspect.isclass(value) and issubclass(value, BaseModel):
            yield value, True


def _keys(model: type[BaseModel]) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        kind, unit, inner = _kind(field.annotation, field.metadata)
        metadata = [*field.metadata, *inner]
        example = _shown(field.default, kind) or _EXAMPLES.get(name) or _example(metadata)
        yield Key(
            name, kind, _default(model, name, field, kind), unit or _UNITS.get(name, ""), "; ".join(_limits(metadata)),
            f"`{example}`" if example else "below", (field.description or _meaning(field)).replace("|", "\\|"),
        )  # fmt: skip


# Examples of keys whose type gives none.
_EXAMPLES = {"version": "1", "name": "two-tenants", "node": "node-a", "network": "[app, back]", "connections": "64"}


def _kind(annotation: Any, metadata: Sequence[Any]) -> tuple[str, str, Sequence[Any]]:
    """Return the type of a value in words, its unit, and the metadata of what is inside of it.

    Raises:
        ValueError: this page knows no words for the type.

    """
    for item in metadata:
        reader = getattr(getattr(item, "func", None), "__name__", "")
        if reader in _READ_BY:
            return (*_READ_BY[reader], ())
    arguments = [item for item in get_args(annotation) if item is not type(None)]
    origin = get_origin(annotation)
    if origin is Annotated:
        return (*_kind(arguments[0], arguments[1:])[:2], arguments[1:])
    if origin is dict:
        return _mapping(arguments[1])
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "mapping", "", ()
    if annotation == list[str]:
        return "name, or list of names", "", ()
    if origin is list:
        return "list of flows", "", list(get_args(arguments[0])[1:])
    if len(arguments) == 1 and origin is not None and type(None) in get_args(annotation):
        return _kind(arguments[0], ())
    simple = {int: "whole number", str: "name"}
    if annotation in simple:
        return simple[annotation], "", ()
    if arguments:
        return f"`{arguments[0]}`", "", ()
    msg = f"no words for {annotation}"
    raise ValueError(msg)


def _mapping(value: Any) -> tuple[str, str, Sequence[Any]]:
    if inspect.isclass(value) and issubclass(value, BaseModel):
        return "mapping of names", "", ()
    kind, unit, inner = _kind(value, ())
    return f"mapping of names to: {kind}", unit, inner


def _default(model: type[BaseModel], name: str, field: FieldInfo, kind: str) -> str:
    if field.is_required():
        return "required"
    if model is LimitsSpec:
        return f"the tenant's, then `{_limit(name)}`"
    if isinstance(field.default, BaseModel):
        return "defaults of its keys"
    return f"`{text}`" if (text := _shown(field.default, kind)) else "none"


def _limit(name: str) -> str:
    given = rules.DEFAULT_LIMITS[name]
    return {"bandwidth": f"{given // 10**6} Mbit/s", "packets": f"{given}/s"}.get(name, str(given))


def _shown(value: object, kind: str) -> str:
    if value in (None, PydanticUndefined) or isinstance(value, BaseModel | list | dict):
        return ""
    return format_size(value) if kind == "size" and isinstance(value, int) else str(value)


def _limits(metadata: Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, Ge):
            yield f"from {item.ge}"
        elif isinstance(item, Le):
            yield f"to {item.le}"
        elif isinstance(item, MinLen):
            yield f"at least {item.min_length}"
        elif isinstance(item, MaxLen):
            yield f"at most {item.max_length}"
        elif inspect.isfunction(getattr(item, "func", None)):
            bounds = inspect.getclosurevars(item.func).nonlocals
            if {"least", "most"} <= set(bounds):
                yield f"{format_size(bounds['least'])} to {format_size(bounds['most'])}"


def _example(metadata: Sequence[Any]) -> str:
    for item in metadata:
        examples = (getattr(item, "json_schema", None) or {}).get("examples")
        if examples:
            return str(examples[0])
    return ""


def _meaning(field: FieldInfo) -> str:
    found = next(_nested(field.annotation), None)
    return _first_line(found[0]) if found else ""


def _first_line(model: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(model) or "").partition("\n\n")[0].split())


def _rules() -> list[str]:
    return [
        "## Rules between keys",
        "",
        f"- A node keeps {format_size(rules.NODE_RESERVE)} of its memory for its root partition.",
        f"- The outer machine keeps {format_size(rules.MACHINE_RESERVE)} for itself.",
        f"- A node runs at most {rules.WORKERS_PER_NODE} guests and tracks {rules.TRACKED_CONNECTIONS} connections.",
        f"- A node must not have one of the names {', '.join(f'`{name}`' for name in rules.RESERVED_NAMES)}.",
        "- Ranges of one tenant must not overlap. Ranges of different tenants may.",
        "- Ranges of tenants must not overlap the infrastructure networks.",
        "- A guest must not have more virtual CPUs than its node.",
        "- A flow joins two guests of one tenant.",
        "",
    ]
