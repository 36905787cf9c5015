"""A YAML file as plain values plus the line of every key and item.

Refuses what makes a topology file ambiguous or expensive: duplicate keys, non-text keys, more than
`MAX_BYTES` of text or `MAX_NODES` of nodes once aliases are expanded.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from testbed.errors import Mistake

MAX_BYTES = 2**23
MAX_NODES = 2_000_000

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
    """Return the value of a scalar by YAML 1.2's core schema; what it cannot read stays text."""
    try:
        match tag.rpartition(":")[2]:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text.replace("_", ""), 0)
            case "float":
                return float(text.replace("_", ""))
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
        yaml = YAML(typ="safe", pure=True)
        node = yaml.compose(io.StringIO(text))
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
