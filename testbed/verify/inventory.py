"""Lists the checks and their required cases from the source text, without pytest.

The cases that pytest collected and ran are compared with this list, so that a lost case is noticed.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UsageError
from testbed.model import subjects
from testbed.model.topology import Topology

WHOLE = "fleet"  # label of a case that is about the whole fleet
_NAMED = 6  # most cases that a message names

# Fixtures that are the machine of a case, each with the machines that get one. A check that looks at one node
# asks for the first or the last one that has guests, so that two such checks can run at the same time.
MACHINES: Mapping[str, Callable[[Topology], list[str]]] = {
    "node": lambda topology: [item.name for item in topology.nodes],
    "machine": lambda topology: [item.name for item in topology.machines],
    "first_host": lambda topology: subjects.hosts(topology)[:1],
    "last_host": lambda topology: subjects.hosts(topology)[-1:],
}
CaseKey = tuple[str, str, str]  # file below the folder, function, label


def members(topology: Topology) -> dict[str, list[str]]:
    """Return the names of the machines that cases are about, by fixture."""
    return {fixture: chosen(topology) for fixture, chosen in MACHINES.items()}


@dataclass(frozen=True, slots=True)
class Found:
    """A declaration as it is written in a file.

    Args:
        fixtures: names of the function's parameters.
    """

    file: str
    function: str
    control: str
    objective: str
    fixtures: tuple[str, ...]

    def labels(self, topology: Topology) -> list[str]:
        """Return the labels of the check's cases in a topology."""
        return next(
            (names for fixture, names in members(topology).items() if fixture in self.fixtures), [WHOLE]
        )


@dataclass(frozen=True, slots=True)
class CheckInventory:
    """All checks of a folder.

    Args:
        oddities: mistakes in the declarations, in words.
    """

    checks: tuple[Found, ...]
    oddities: tuple[str, ...]

    @property
    def controls(self) -> tuple[str, ...]:
        """Ids of all controls, sorted."""
        return tuple(sorted({item.control for item in self.checks}))

    def require(self, only: Sequence[str]) -> None:
        """Require that each word selects a control.

        Args:
            only: control ids, or beginnings of them.

        Raises:
            UsageError: a word selects none.
        """
        wrong = [
            word for word in only if not word or not any(selects(word, control) for control in self.controls)
        ]
        if wrong:
            what, known = f"no check is selected by {', '.join(map(repr, wrong))}", ", ".join(self.controls)
            raise UsageError(
                what,
                fact=f"the controls are {known}",
                remedy="use --only with one of these, or its beginning",
            )

    def cases(self, topology: Topology, only: Sequence[str]) -> Counter[CaseKey]:
        """Return every case that must run in a topology."""
        return Counter(
            (item.file, item.function, label)
            for item in self.checks
            if not only or any(selects(word, item.control) for word in only)
            for label in item.labels(topology)
        )


def selects(word: str, control: str) -> bool:
    """Return whether a word is a control's id or the beginning of it."""
    return control.upper().startswith(word.upper())


def inventory(folder: Path) -> CheckInventory:
    """Read the declarations of all files of a folder; an unreadable file is an oddity."""
    checks: list[Found] = []
    oddities: list[str] = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        try:
            checks += _declared(name, ast.parse(path.read_bytes()))
        except (SyntaxError, ValueError, OSError) as error:
            oddities.append(f"{name} cannot be read: {error}")
    for (control, text), count in Counter((item.control, item.objective) for item in checks).items():
        if count > 1:
            oddities.append(f"{control} is declared {count} times with the objective '{text}'")
    return CheckInventory(tuple(checks), tuple(oddities))


def _declared(file: str, tree: ast.Module) -> Iterator[Found]:
    for node in ast.walk(tree):
        for call in getattr(node, "decorator_list", []):
            name = getattr(call, "func", None)
            if getattr(name, "id", getattr(name, "attr", "")) == "check" and isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef
            ):
                told = {item.arg: item.value for item in call.keywords}
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                control, objective = (
                    _text(file, node.name, told.get(key), key) for key in ("id", "objective")
                )
                yield Found(file, node.name, control, objective, tuple(item.arg for item in parameters))


def _text(file: str, function: str, value: ast.expr | None, key: str) -> str:
    """Return the text of a literal; a computed text could differ at run time.

    Raises:
        ValueError: the value is not a literal text.
    """
    if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
        msg = f"{file}: {key} of {function} is not written out as a text"
        raise ValueError(msg)
    return value.value


def differences(expected: Counter[CaseKey], ran: Counter[CaseKey]) -> list[str]:
    """Return the differences between expected and run cases, in words; empty if there are none."""
    missing, more = expected - ran, ran - expected
    found = []
    if missing:
        found.append(f"{missing.total()} of {expected.total()} cases did not run: {_names(missing)}")
    if more:
        found.append(
            f"{more.total()} cases ran that no declaration accounts for, or more than once: {_names(more)}"
        )
    return found


def _names(cases: Iterable[CaseKey]) -> str:
    names = sorted(f"{function} of {file} for {label}" for file, function, label in cases)
    rest = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
