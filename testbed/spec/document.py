"""A YAML file as plain values plus the line of every key and item.

Refuses what makes a topology file ambiguous or expensive: duplicate keys, non-text keys, more than
`MAX_BYTES` of text or `MAX_NODES` of nodes once aliases are expanded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from yaml.cyaml import CParser
from yaml.error import MarkedYAMLError, YAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from testbed.errors import Mistake

MAX_BYTES = 2**23
MAX_NODES = 2_000_000

_PLAIN = "plain"
_CORE = (
    ("null", re.compile(r"null|Null|NULL|~|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    ("float", re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")),
)

Path = tuple[str | int, ...]
Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]


def dotted(path: Path) -> str:
    """Return a path the way messages show it: ``tenants.red.allow[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass
class Document:
    """Values of a file, where each one stands, and what is wrong with the text itself."""

    data: Value = None
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """Return the line (from 1) of a path, or of its nearest parent that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def at(value: Value, path: Path) -> Value:
    """Return what stands at a path below a value, or None."""
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


class _Parser(CParser):  # type: ignore[misc]  # the library has no types
    """libyaml's parser, which leaves open what a plain scalar means; PyYAML's answer would be YAML 1.1's, where "no" is false."""

    def resolve(self, kind: type[Node], _: str | None, implicit: bool | tuple[bool, bool]) -> str:
        """Return the tag of a node that has none."""
        if kind is ScalarNode:
            return _PLAIN if isinstance(implicit, tuple) and implicit[0] else "str"
        return "seq" if kind is SequenceNode else "map"

    def descend_resolver(self, *_: object) -> None:
        """Nothing depends on where a node stands."""

    ascend_resolver = descend_resolver


class _Reader:
    def __init__(self) -> None:
        self.document = Document()
        self._count = 0

    def read(self, node: Node, path: Path) -> Value:
        self._count += 1
        if self._count > MAX_NODES:
            raise _TooLargeError
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(str(node.tag), str(node.value))

    def _mapping(self, node: MappingNode, path: Path) -> Value:
        values: dict[str, Value] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, ScalarNode) else "?"
            line = key_node.start_mark.line + 1
            if key in values:
                self.document.mistakes.append(
                    Mistake(
                        line,
                        dotted((*path, key)),
                        f"the key '{key}' stands here a second time (first in line {first[key]})",
                        "keep one of the two",
                    )
                )
                continue
            first[key] = line
            self.document.lines[(*path, key)] = line
            values[key] = self.read(value_node, (*path, key))
        return values


class _TooLargeError(Exception):
    pass


def _scalar(tag: str, text: str) -> bool | int | float | str | None:
    """Return the value of a scalar by the core schema (YAML 1.2.2, 10.3.2); what it cannot read stays text."""
    name = tag.rpartition(":")[2]
    if tag == _PLAIN:
        name = next((name for name, pattern in _CORE if pattern.fullmatch(text)), "str")
    try:
        match name:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text, 0 if text.startswith(("0x", "0o")) else 10)
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        pass
    return text


def parse(text: str) -> Document:
    """Read YAML text; mistakes of the text are in the returned document, never raised."""
    reader = _Reader()
    document = reader.document
    if len(text) > MAX_BYTES:
        document.mistakes.append(
            Mistake(0, "", f"the file has {len(text)} characters", f"keep a topology below {MAX_BYTES}")
        )
        return document
    try:
        node = _Parser(text).get_single_node()
        document.data = reader.read(node, ()) if node is not None else None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.mistakes.append(
            Mistake(
                mark.line + 1 if mark else 0,
                "",
                f"this is not YAML: {error.problem or error.context}",
                "correct the syntax; mappings are 'key: value', indented with spaces",
            )
        )
    except _TooLargeError:
        document.mistakes.append(
            Mistake(0, "", f"the file expands to more than {MAX_NODES} values", "use fewer aliases")
        )
    except (YAMLError, RecursionError, ValueError) as error:
        document.mistakes.append(Mistake(0, "", f"this is not YAML: {error}", "correct the syntax"))
    return document
