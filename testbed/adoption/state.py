"""What a host is, as its recording program told; checked before anything is done with it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from testbed.adoption.scope import Scope
from testbed.untrusted import bounded_json

_ENTRY = re.compile(
    r"(?P<kind>[fdlo]) (?P<mode>[0-7]{1,4}) (?P<owner>\d{1,10}) (?P<group>\d{1,10}) (?P<size>\d{1,16}) "
    r"(?P<time>-?\d{1,20}) (?P<digest>-|[0-9a-f]{64}) (?P<attributes>-|[a-z_.=,0-9]{1,8192}) "
    r"(?P<path>/[^\0]{0,4095})(?:\0(?P<target>[^\0]{1,4096}))?",
    re.DOTALL,
)
_UNIT = re.compile(r"-\.mount|[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{1,255}")
_PACKAGE = re.compile(
    r"([a-z0-9][a-z0-9+.-]{1,100}(?::[a-z0-9-]{1,20})?)\t([A-Za-z0-9.+:~-]{0,200})\t([a-z-]{1,30})"
)
_SETTING = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./:@+ -]{1,199}")
_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_SHORT, _LONG = 4096, 4 * 2**20  # characters of a value, and of the rules of the packet filter
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder, link or other object.

    Args:
        kind: f, d, l or o, as in find(1); o is a device, socket or pipe.
        mode: octal digits.
        owner: user id.
        group: group id.
        size: octets; 0 where it is not compared.
        time: of the last change in nanoseconds since 1970; 0 where it is not compared.
        digest: SHA-256 of the content; empty if it was not read.
        attributes: capabilities and access lists, in one text.
        target: of a link.
    """

    kind: str
    mode: str
    owner: int
    group: int
    size: int
    time: int
    digest: str
    attributes: str
    target: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of systemd: its states, and the id of its present run."""

    active: str
    sub: str
    run: str


@dataclass(frozen=True, slots=True)
class HostState:
    """A host at one moment.

    Args:
        scope: the recorded parts.
        machine: facts that tell hosts and boots apart.
        packages: version of each installed package.
        files: entries by path; octets of paths are characters of Latin-1.
        units: units that outlive a session.
        sysctls: kernel settings that can be written.
        modules: loaded modules.
        links: network interfaces.
        mounts: mount points.
        rules: of the packet filter, as nft prints them; empty without nft.
    """

    scope: Scope
    machine: dict[str, str]
    packages: dict[str, str]
    files: dict[str, Entry]
    units: dict[str, Unit]
    sysctls: dict[str, str]
    modules: frozenset[str]
    links: dict[str, str]
    mounts: frozenset[str]
    rules: str


def parsed(text: bytes) -> HostState:
    """Return the state in a JSON text from a host.

    Raises:
        ValueError: it is none, or is beyond bounds.
    """
    told = bounded_json.read(text)
    if not isinstance(told, dict) or told.get("version") != _VERSION:
        raise ValueError("no state of a host of this version")
    return HostState(
        scope=_scope(told.get("scope")),
        machine=_texts(told.get("machine")),
        packages=dict(_packages(told.get("packages"))),
        files=dict(_entry(item) for item in _list(told.get("files"))),
        units={_matching(_UNIT, name): _unit(item) for name, item in _dict(told.get("units")).items()},
        sysctls={_matching(_SETTING, name): text for name, text in _texts(told.get("sysctls")).items()},
        modules=frozenset(_matching(_MODULE, item) for item in _list(told.get("modules"))),
        links=_texts(told.get("links")),
        mounts=frozenset(_text(item) for item in _list(told.get("mounts"))),
        rules=_text(told.get("rules"), _LONG),
    )


def _scope(told: object) -> Scope:
    trees = {
        name: tuple(_text(tree) for tree in _list(_dict(told).get(name)))
        for name in ("copied", "noted", "listed", "left")
    }
    if not all(tree.startswith("/") for part in trees.values() for tree in part):
        raise ValueError("a tree of its scope has no absolute path")
    return Scope(**trees)


def _packages(told: object) -> list[tuple[str, str]]:
    found = []
    for item in _list(told):
        match = _PACKAGE.fullmatch(_text(item))
        if match is None:
            raise ValueError(f"{str(item)[:80]!r} describes no package")
        if match[3] == "installed":
            found.append((match[1], match[2]))
    return found


def _entry(told: object) -> tuple[str, Entry]:
    match = _ENTRY.fullmatch(told) if isinstance(told, str) else None
    if match is None or (match["kind"] == "l") != (match["target"] is not None):
        raise ValueError(f"{str(told)[:120]!r} describes no file")
    path = match["path"]
    if any(part in ("", ".", "..") for part in path[1:].split("/")) and path != "/":
        raise ValueError(f"{path[:120]!r} is no plain path")
    return path, Entry(
        kind=match["kind"],
        mode=match["mode"],
        owner=int(match["owner"]),
        group=int(match["group"]),
        size=int(match["size"]),
        time=int(match["time"]),
        digest=match["digest"].lstrip("-"),
        attributes=match["attributes"].lstrip("-"),
        target=match["target"] or "",
    )


def _unit(told: object) -> Unit:
    words = [_text(item) for item in _list(told)]
    if len(words) != 3:
        raise ValueError(f"{str(told)[:80]!r} describes no unit")
    return Unit(*words)


def _dict(told: object) -> dict[str, Any]:
    if not isinstance(told, dict):
        raise ValueError(f"{str(told)[:40]!r} is no object")
    return told


def _list(told: object) -> list[Any]:
    if not isinstance(told, list):
        raise ValueError(f"{str(told)[:40]!r} is no list")
    return told


def _text(told: object, most: int = _SHORT) -> str:
    if not isinstance(told, str) or len(told) > most:
        raise ValueError(f"{str(told)[:40]!r} is no text of at most {most} characters")
    return told


def _texts(told: object) -> dict[str, str]:
    return {_text(name): _text(item) for name, item in _dict(told).items()}


def _matching(pattern: re.Pattern[str], told: object) -> str:
    if not isinstance(told, str) or not pattern.fullmatch(told):
        raise ValueError(f"{str(told)[:80]!r} is no name")
    return told
