"""Writes the reference page of topology files from the pydantic models of the schema."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from testbed.topology_file import validation as rules
from testbed.topology_file.quantities import format_size
from testbed.topology_file.schema import NAME_RULE, LimitsSpec, Spec

EXAMPLE = Path(__file__).parents[2] / "topologies/three-tenants-dual-stack.yaml"
# Type and unit by the name of the function that reads the text.
_READ_BY = {
    "parse_size": ("size", "KiB, MiB, GiB"),
    "parse_bandwidth": ("bandwidth", "kbit/s, Mbit/s, Gbit/s"),
    "parse_packets": ("packet rate", "packets per second"),
    "_volume": ("size, or a mapping", "KiB, MiB, GiB"),
    "_file_name": ("file", ""),
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
        "A topology file is YAML. Unknown keys are refused.",
        "`testbed validate FILE` reports every mistake in one pass,",
        "`testbed validate --schema` prints the JSON Schema for editors.",
        "",
        f"A *name* must {NAME_RULE}.",
        "A *size* is a whole number and a unit, as in `64 MiB`.",
        "A *flow* is one line, `source -> target service`.",
        "The service is `tcp/PORT`, `udp/PORT` or `icmp`.",
        "",
    ]
    for place, model in _models("", Spec):
        lines += [f"## {place or 'Top level'}", "", _first_line(model), ""]
        lines += [
            "| key | type | default | unit | limits | example | meaning |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [f"| `{key.name}` | {' | '.join(list(astuple(key))[1:])} |" for key in _keys(model)]
        lines.append("")
    lines += [
        *_rules(),
        "## Example",
        "",
        f"`topologies/{EXAMPLE.name}`:",
        "",
        "```yaml",
        EXAMPLE.read_text().rstrip(),
        "```",
    ]
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
        value = get_args(value)[0] if get_origin(value) is Annotated else value
        if inspect.isclass(value) and issubclass(value, BaseModel):
            yield value, True


def _keys(model: type[BaseModel]) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        kind = kind_of(field.annotation, field.metadata)
        metadata = [*field.metadata, *kind.inner]
        example = _shown(field.default, kind.words) or _EXAMPLES.get(name) or _example(metadata)
        yield Key(
            name=name,
            kind=kind.words,
            default=_default(model, name, field, kind.words),
            unit=kind.unit or _UNITS.get(name, ""),
            limits="; ".join(_limits(metadata)),
            example=f"`{example}`" if example else "below",
            meaning=(field.description or _meaning(field)).replace("|", "\\|"),
        )


# Examples of keys whose type gives none.
_EXAMPLES = {
    "version": "1",
    "name": "two-tenants",
    "node": "node-a",
    "network": "[app, back]",
    "connections": "64",
    "image": "disk.qcow2",
    "format": "qcow2",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a value in words, its unit, and the metadata of the values inside it."""

    words: str
    unit: str = ""
    inner: Sequence[Any] = ()


def kind_of(annotation: Any, metadata: Sequence[Any]) -> Kind:
    """Return the type that an annotation stands for.

    Raises:
        ValueError: this page knows no words for the type.

    """
    for item in metadata:
        reader = getattr(getattr(item, "func", None), "__name__", "")
        if reader in _READ_BY:
            return Kind(*_READ_BY[reader])
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return Kind("mapping")
    simple = _SIMPLE.get(annotation)
    return Kind(simple) if simple else _composed(annotation)


_SIMPLE: Mapping[object, str] = {int: "whole number", str: "name", list[str]: "name, or list of names"}


def _composed(annotation: Any) -> Kind:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return replace(kind_of(arguments[0], arguments[1:]), inner=arguments[1:])
    if origin is dict and inspect.isclass(arguments[1]):
        return Kind("mapping of names")
    if origin is dict:
        value = kind_of(arguments[1], ())
        return replace(value, words=f"mapping of names to: {value.words}")
    if origin is list:
        return Kind("list of flows", inner=get_args(arguments[0])[1:])
    if origin is Literal:
        return Kind(" or ".join(f"`{value}`" for value in arguments))
    if type(None) in arguments:
        return kind_of(arguments[0], ())
    msg = f"no words for {annotation}"
    raise ValueError(msg)


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
    shown = {
        "bandwidth": f"{given // 10**6} Mbit/s",
        "packets": f"{given}/s",
        "cpu": f"{given}%",
        "memory_overhead": format_size(given),
        "disk_operations": f"{given}/s",
        "disk_bandwidth": f"{format_size(given)}/s",
    }
    return shown.get(name, str(given))


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
        "- Memory of guests and `memory_overhead` must fit what is left of it.",
        f"- The volumes of a node's guests must fit nine tenths of {format_size(rules.POOL)}. Root disks, of "
        f"{format_size(rules.ROOT_DISK)} each, are there as well: DOS-04 fails where they may not fit.",
        f"- A volume with an image has at most {format_size(rules.IMPORTED)}. The image is a regular file, "
        "raw or qcow2 (version 2 or 3, compressed with zlib or not) without backing file, data file, "
        "encryption, snapshots and bitmaps, and its disk fits the volume. The rest of the volume is zeros.",
        f"- The outer machine keeps {format_size(rules.MACHINE_RESERVE)} for itself.",
        f"- A node runs at most {rules.WORKERS_PER_NODE} guests.",
        f"- A node tracks {rules.TRACKED_CONNECTIONS} connections.",
        f"- A node must not have one of the names {', '.join(f'`{name}`' for name in rules.RESERVED_NAMES)}.",
        "- Ranges of one tenant must not overlap. Ranges of different tenants may.",
        "- Ranges of tenants must not overlap the infrastructure networks.",
        "- A guest must not have more virtual CPUs than its node.",
        "- A flow joins two guests of one tenant.",
        "",
    ]
