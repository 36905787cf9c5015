"""A YAML file as plain values plus the line of every key and item.

Refuses what makes a topology file ambiguous or expensive: duplicate keys, tags, merge keys, and more of
anything than `Limit` allows. The events of libyaml are read one by one, so that a file over a limit costs
nothing beyond it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum

from yaml.cyaml import CParser
from yaml.error import MarkedYAMLError, YAMLError
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from testbed.errors import Mistake


class Limit(IntEnum):
    """The most that a file may have of something; ten thousand guests need a tenth to a half of it."""

    CHARACTERS = 2**22
    VALUES = 250_000  # once aliases are expanded
    DEPTH = 16  # mappings and lists inside one another
    TEXT = 200  # characters of one key or value


_PLAIN = "plain"
_CORE = (
    ("null", re.compile(r"null|Null|NULL|~|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    (
        "float",
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
    ),
)
_STANDARD = "tag:yaml.org,2002:"
_SYNTAX = "correct the syntax; mappings are 'key: value', indented with spaces"
_CUT = 60  # characters of a value that a message repeats

Path = tuple[str | int, ...]
Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]


def dotted(path: Path) -> str:
    """Return a path the way messages show it: ``tenants.red.allow[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shown(value: object) -> str:
    """Return a value of a file the way the file would write it, cut to 60 characters."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return f"'{value}'" if len(value) <= _CUT else f"'{value[:_CUT]}…'"
    return str(value)[:_CUT]


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


class _RefusedError(Exception):
    """The rest of the file is not read: it is over a limit, or no topology."""

    def __init__(self, line: int, fact: str, remedy: str) -> None:
        super().__init__(fact)
        self.mistake = Mistake(line, "", fact, remedy)


class _Reader:
    """Builds values from the events of libyaml's parser.

    What a plain scalar means is decided here: PyYAML's own answer would be that of YAML 1.1, where "no" is
    false.
    """

    def __init__(self, text: str) -> None:
        self.document = Document()
        self._parser = CParser(text)
        self._count = 0
        self._anchors: dict[str, tuple[Value, int]] = {}

    def read(self) -> None:
        """Read the one document of the text."""
        self._parser.get_event()
        if not self._parser.check_event(DocumentStartEvent):
            return
        self._parser.get_event()
        self.document.data = self._value((), 0)
        self._parser.get_event()
        if not self._parser.check_event(StreamEndEvent):
            line = _line(self._parser.peek_event())
            raise _RefusedError(
                line,
                "a second document begins here",
                "keep one topology in a file; remove '---' and what follows",
            )

    def _value(self, path: Path, depth: int) -> Value:
        event = self._parser.get_event()
        line = _line(event)
        self.document.lines.setdefault(path, line)
        self._spend(1, line)
        if isinstance(event, AliasEvent):
            return self._aliased(event, line)
        before = self._count
        value = self._content(event, path, depth)
        if isinstance(event, NodeEvent) and event.anchor:
            self._anchors[event.anchor] = (value, self._count - before + 1)
        return value

    def _content(self, event: Event, path: Path, depth: int) -> Value:
        line, tag = _line(event), getattr(event, "tag", None)
        if tag is not None and not tag.startswith(_STANDARD):
            raise _RefusedError(
                line,
                f"the tag {shown(tag)} is used",
                "write the value itself: the format has no tags and no includes",
            )
        if isinstance(event, ScalarEvent):
            return _scalar(tag or (_PLAIN if event.implicit[0] else "str"), _text(event))
        if depth >= Limit.DEPTH:
            raise _RefusedError(
                line, f"more than {Limit.DEPTH} mappings and lists are inside one another", "use fewer levels"
            )
        if isinstance(event, MappingStartEvent):
            return self._mapping(path, depth + 1)
        assert isinstance(event, SequenceStartEvent), event
        items: list[Value] = []
        while not self._parser.check_event(SequenceEndEvent):
            items.append(self._value((*path, len(items)), depth + 1))
        self._parser.get_event()
        return items

    def _mapping(self, path: Path, depth: int) -> Value:
        values: dict[str, Value] = {}
        first: dict[str, int] = {}
        while not self._parser.check_event(MappingEndEvent):
            event = self._parser.get_event()
            line = _line(event)
            if not isinstance(event, ScalarEvent):
                raise _RefusedError(
                    line, "a key is a list, a mapping or an alias", "write each key as plain text"
                )
            key = _text(event)
            if key in values or (key == "<<" and event.implicit[0]):
                # Its value is read as if it stood beside the mapping: it counts, and has a line.
                self._value((*path, key, "again"), depth)
                self._mistake(line, (*path, key), *_unusable_key(key, first.get(key)))
                continue
            first[key] = self.document.lines[(*path, key)] = line
            values[key] = self._value((*path, key), depth)
        self._parser.get_event()
        return values

    def _aliased(self, event: AliasEvent, line: int) -> Value:
        if event.anchor not in self._anchors:
            raise _RefusedError(
                line,
                f"the alias '*{event.anchor[:_CUT]}' has no anchor above it",
                f"add '&{event.anchor[:_CUT]}' first",
            )
        value, size = self._anchors[event.anchor]
        self._spend(size, line)
        return value

    def _spend(self, values: int, line: int) -> None:
        self._count += values
        if self._count > Limit.VALUES:
            fact = f"the file has more than {Limit.VALUES} values, those of aliases included"
            raise _RefusedError(line, fact, "use fewer aliases, or several smaller labs")

    def _mistake(self, line: int, path: Path, fact: str, remedy: str) -> None:
        self.document.mistakes.append(Mistake(line, dotted(path), fact, remedy))


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _text(event: ScalarEvent) -> str:
    if len(event.value) > Limit.TEXT:
        fact = f"a text has {len(event.value)} characters: {shown(event.value)}"
        raise _RefusedError(_line(event), fact, f"use at most {Limit.TEXT} characters for a key or a value")
    return str(event.value)


def _unusable_key(key: str, first: int | None) -> tuple[str, str]:
    if first is None:
        return (
            "the merge key '<<' is used",
            "write the keys themselves: the format has no merge keys; plain aliases work",
        )
    return f"the key '{key}' stands here a second time (first in line {first})", "keep one of the two"


def _scalar(tag: str, text: str) -> bool | int | float | str | None:
    """Return the value of a scalar by the core schema (YAML 1.2.2, 10.3.2); what it cannot read stays
    text.
    """
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
    if len(text) > Limit.CHARACTERS:
        fact = f"the file has more than {Limit.CHARACTERS} characters"
        return Document(mistakes=[Mistake(1, "", fact, "use fewer guests, or several smaller labs")])
    reader: _Reader | None = None
    try:
        reader = _Reader(text)
        reader.read()
    except _RefusedError as error:
        mistake = error.mistake
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        mistake = Mistake(
            mark.line + 1 if mark else 1, "", f"this is not YAML: {error.problem or error.context}", _SYNTAX
        )
    except (YAMLError, ValueError) as error:
        mistake = Mistake(1, "", f"this is not YAML: {' '.join(str(error).split())}", _SYNTAX)
    else:
        return reader.document
    found = reader.document if reader else Document()
    return Document(None, found.lines, [*found.mistakes, mistake])
