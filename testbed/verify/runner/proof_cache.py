"""Cache of proofs, so that only changed checks are proven again (``check --prove=changed``).

A proof depends on the check and its breaches, on the programs in guests, on the judging code (the package
`verify` and the verdicts of `report`), on everything that these import, and on the lab: its topology, its
images and the versions of the software below. The key of a proof is one digest of all of it.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from threading import Lock

_PACKAGES = ("checks", "testbed")
_JUDGES = ("testbed/verify/**/*.py", "testbed/report/result.py")
_ALWAYS = ("checks/**/__init__.py", "testbed/payload/**/*.py", *_JUDGES)
_KEPT = 5000  # proofs
_PARSING = (
    Lock()
)  # Python before 3.12 fails now and then when two threads parse at once ("recursion depth mismatch")


class Proving(StrEnum):
    """Which breaches a run tries.

    None, all, those with a changed digest, or for each check the one that was tried longest ago.
    """

    NOTHING = "no"
    EVERYTHING = "all"
    CHANGED = "changed"
    ONE = "one"


@dataclass(frozen=True, slots=True)
class Part:
    """A share of the cases whose breaches are tried, so that several jobs prove all of them together.

    Neighbours in the order of the checks are in different parts: often they are one check on two nodes.

    Args:
        number: which part; the first one is 1.
        of: number of parts.
    """

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, place: int) -> bool:
        """Return whether the case at a place belongs to it; the first place is 0."""
        return place % self.of == self.number - 1


ALL_CASES = Part()


class ProofCache:
    """The proofs in one file.

    Args:
        file: its path; it need not exist.
        root: folder that contains the packages of the checks and of the tool.
        configuration: everything else that a proof depends on.
        way: which breaches are to be tried; new proofs are remembered in any case.
        part: of which cases.
    """

    def __init__(
        self, file: Path, root: Path, configuration: Sequence[str], way: Proving, part: Part = ALL_CASES
    ) -> None:
        self.part = part
        self._file, self._root, self._way = file, root, way
        self._configuration = json.dumps(list(configuration))

    def proven_at(self, check: Path, *names: str) -> str:
        """Return the time (ISO 8601) of an earlier proof that still holds, else the empty string.

        Args:
            check: file of the check.
            names: control, case, objective and breach.
        """
        return self._read().get(self._digest(check, names), "") if self._way is Proving.CHANGED else ""

    def left_out(self, check: Path, each: Sequence[Sequence[str]]) -> set[Sequence[str]]:
        """Return the names of a check's breaches that are not to be tried.

        With `Proving.ONE` these are all but the one that was tried longest ago.
        """
        if self._way is not Proving.ONE or not each:
            return set()
        known = self._read()
        return set(each) - {min(each, key=lambda names: known.get(self._digest(check, names), ""))}

    def remember(self, check: Path, *names: str) -> None:
        """Store a new proof; a file that cannot be written is ignored."""
        found = self._read()
        found[self._digest(check, names)] = datetime.now(UTC).isoformat(timespec="seconds")
        latest = sorted(found.items(), key=lambda item: item[1])[-_KEPT:]
        partial = self._file.with_name(f"{self._file.name}.partial")
        with suppress(OSError):
            partial.write_text(json.dumps(dict(latest), indent=0))
            partial.rename(self._file)

    def _read(self) -> dict[str, str]:
        try:
            data = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in data.items()} if isinstance(data, dict) else {}

    def _digest(self, check: Path, names: Sequence[str]) -> str:
        with _PARSING:
            code = code_digest(check, self._root)
        return hashlib.sha256(json.dumps([code, self._configuration, *names]).encode()).hexdigest()


@cache
def code_digest(file: Path, root: Path) -> str:
    """Return a digest of a check's file, guest and judging code, and all that they import."""
    found: set[Path] = set()
    waiting = [file, *(path for pattern in _ALWAYS for path in root.glob(pattern))]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path, root)
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _imported(path: Path, root: Path) -> Iterator[Path]:
    for name in _names(path.read_bytes()):
        module = root.joinpath(*name.split(".")).with_suffix(".py")
        if module.is_file():
            yield module


@cache  # to parse all modules takes a second, and every check asks for most of them
def _names(source: bytes) -> tuple[str, ...]:
    """Return the names in our packages that a module imports; some are no modules."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in found if name.split(".")[0] in _PACKAGES)
