"""Mutation test of the code that decides verdicts: counts mutants that unit tests notice.

    nice -n 10 python benchmarks/judges.py [--count 84] [--seed 15] [--processes 2] [--near]
        [--within PATH]… [--only FILE:LINE]… [--list]

Cosmic Ray makes the mutants (`pip install -e '.[dev,bench]'`); three operators of our own swap `in` with
`not in`, return nothing and catch nothing. Files of `checks/` get mutants of comparisons and conditions only:
their numbers make packets. One mutant is drawn for each drawn line. Only copies of the working tree are
changed.

Each mutant is tried by the file of tests that has its file's name, then by all tests that import its file,
and then by all of `tests/unit` and `tests/sim` that reach it by imports, those with the fewest steps first
(`--near` leaves the last out). Each trial is a fork of a process that has loaded the libraries. At the end,
the tests that noticed a mutant run without any mutant and have to pass.

Prints a line for each mutant and JSON at the end. 60 mutants took 26 minutes beside eight busy processes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import NoReturn

import parso
import pytest
from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from parso.tree import NodeOrLeaf

ROOT = Path(__file__).parents[1]
JUDGES = ("testbed/verify", "testbed/report", "testbed/inventory", "checks")
COMPARED = "checks/"  # of these files, comparisons and conditions only
OWN = ("testbed", "checks", "tests", "docs", "benchmarks")
PYTEST = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not lint", "--tb=no",
          "-W", "ignore::pytest.PytestAssertRewriteWarning")  # fmt: skip
LIMIT = 120  # seconds of a processor for one group of tests; a mutant that never ends counts as noticed
WAIT = 1200  # seconds by the clock; a group that is cut off by it has noticed nothing
LATE = "cut off by the clock"
BROKEN = 98  # status of a fork that did not run the tests of the copy
SWAPPED = ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt",
           "GtE_Lt", "Is_IsNot", "IsNot_Is")  # fmt: skip
LOGIC = ("AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceUnaryOperator_Delete_Not",
         *(f"ReplaceComparisonOperator_{name}" for name in SWAPPED))  # fmt: skip
VALUES = ("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "NumberReplacer", "ZeroIterationForLoop",
          "ReplaceBreakWithContinue", "ReplaceContinueWithBreak")  # fmt: skip


class Membership(Operator):
    """Swap `in` with `not in`."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        if node.type == "comparison" and node.children[1].get_code().split() in (["in"], ["not", "in"]):
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: NodeOrLeaf, _: int) -> NodeOrLeaf:
        swapped = " in" if node.children[1].get_code().split() == ["not", "in"] else " not in"
        node.children[1] = parso.parse(swapped)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class NothingReturned(Operator):
    """Return None instead of a value."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        if (
            node.type == "return_stmt"
            and len(node.children) > 1
            and node.children[1].get_code().strip() != "None"
        ):
            yield node.start_pos, node.end_pos

    def mutate(self, node: NodeOrLeaf, _: int) -> NodeOrLeaf:
        node.children[1] = parso.parse(" None")
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class NothingCaught(Operator):
    """Let an exception through that is caught."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        if node.type == "except_clause":
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: NodeOrLeaf, _: int) -> NodeOrLeaf:
        node.children[1] = parso.parse(" ()")
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


LOGIC_OPERATORS = {name: get_operator(f"core/{name}")() for name in LOGIC} | {"Membership": Membership()}
ALL_OPERATORS = (
    LOGIC_OPERATORS
    | {name: get_operator(f"core/{name}")() for name in VALUES}
    | {"NothingReturned": NothingReturned(), "NothingCaught": NothingCaught()}
)


@dataclass(frozen=True, order=True)
class Mutant:
    """One change of one file: the numbered occurrence of an operator."""

    file: str
    line: int
    operator: str
    occurrence: int

    def code(self) -> str:
        """Return the changed content of the file."""
        changed = mutate_code((ROOT / self.file).read_text(), ALL_OPERATORS[self.operator], self.occurrence)
        if changed is None:
            raise ValueError(f"{self} does not exist")
        return str(changed)

    def compiles(self) -> bool:
        """Return whether Python takes the changed file."""
        try:
            compile(self.code(), self.file, "exec")
        except SyntaxError:
            return False
        return True


class Places(Visitor):
    """Notes every mutant of a file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._operators = LOGIC_OPERATORS if file.startswith(COMPARED) else ALL_OPERATORS
        self._seen = dict.fromkeys(self._operators, 0)
        self.found: list[Mutant] = []
        self.walk(get_ast((ROOT / file).read_text()))

    def visit(self, node: NodeOrLeaf) -> NodeOrLeaf:
        for name, operator in self._operators.items():
            for start, _ in operator.mutation_positions(node):
                self.found.append(Mutant(self._file, start[0], name, self._seen[name]))
                self._seen[name] += 1
        return node


def judges(within: Sequence[str] = ()) -> list[str]:
    """Return the files that decide verdicts, relative to the tree.

    Args:
        within: files and folders to look at; all if it is empty.

    Raises:
        ValueError: one of these has no such file.

    """
    found = sorted(
        str(path.relative_to(ROOT))
        for folder in JUDGES
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    )
    places = {place: [file for file in found if Path(file).is_relative_to(place)] for place in within}
    if missing := [place for place, files in places.items() if not files]:
        raise ValueError(f"{', '.join(missing)}: no file there decides verdicts")
    return sorted({file for files in places.values() for file in files}) if within else found


def sample(count: int, seed: int, within: Sequence[str], only: Sequence[str]) -> list[Mutant]:
    """Return one mutant for each of `count` lines, both drawn at random; lines without any are left out.

    Args:
        within: files and folders whose lines are drawn; all if it is empty.
        only: `file:line` of the drawn mutants to keep; all are kept if it is empty.

    """
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for file in judges(within):
        for mutant in sorted(Places(file).found):
            lines.setdefault((file, mutant.line), []).append(mutant)
    draw = random.Random(seed)
    drawn = [
        [draw.choice(lines[line]), *lines[line]]
        for line in draw.sample(sorted(lines), min(count, len(lines)))
    ]
    valid = [next(filter(Mutant.compiles, found), None) for found in drawn]
    return [
        mutant
        for mutant in valid
        if mutant is not None and (not only or f"{mutant.file}:{mutant.line}" in only)
    ]


class Tests:
    """Which files of tests import which files of the tree, directly or not."""

    def __init__(self) -> None:
        self._imports = {
            path: self._imported(path) for folder in OWN for path in (ROOT / folder).rglob("*.py")
        }
        self._files = sorted(
            path
            for path in self._imports
            if path.name.startswith("test_") and path.is_relative_to(ROOT / "tests")
            and path.parts[len(ROOT.parts) + 1] in ("unit", "sim")
        )  # fmt: skip

    @staticmethod
    def _imported(path: Path) -> set[Path]:
        text, found = path.read_text(), set[Path]()
        for folder in re.findall(r'import_module\(f"(\w+)\.\{', text):
            found.update((ROOT / folder).glob("*.py"))
        for module, names in re.findall(r"^\s*from ([\w.]+) import ([\w, ]+|\([^)]*\))", text, re.M):
            for name in ["", *re.findall(r"\w+", names)]:
                found.add(ROOT.joinpath(*module.split("."), name).with_suffix(".py"))
        return found

    @staticmethod
    def name(file: str) -> str:
        """Return the name of the tests that are about a file."""
        return f"test_{Path(file).stem.removeprefix('test_')}"

    def near(self, file: str) -> list[str]:
        """Return the tests that import a file, the one with its name first."""
        target, mirrored = ROOT / file, f"{self.name(file)}.py"
        found = [path for path in self._files if target in self._imports[path] or path.name == mirrored]
        found.sort(key=lambda path: (path.name != mirrored, path.stat().st_size))
        return [str(path.relative_to(ROOT)) for path in found]

    def far(self, file: str) -> list[list[str]]:
        """Return the other tests that reach a file by imports, by folder, nearest first."""
        reaching, found = {ROOT / file}, list[list[str]]()
        near = set(self.near(file))
        while more := {path for path, used in self._imports.items() if used & reaching} - reaching:
            reaching |= more
            names = {str(path.relative_to(ROOT)) for path in more.intersection(self._files)}
            found += by_folder(sorted(names - near))
        return found


def by_folder(tests: Sequence[str]) -> list[list[str]]:
    """Return files of tests in groups of one folder, in the order of their first files."""
    groups: dict[str, list[str]] = {}
    for name in tests:
        groups.setdefault(str(Path(name).parent), []).append(name)
    return list(groups.values())


def copy_tree(folder: Path) -> None:
    """Copy the files of the working tree that git tracks or does not ignore."""
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run(folder: Path, tests: Sequence[str]) -> str:
    """Run tests of a copy of the tree in a fork; return the first failure, LATE, or nothing if they pass."""
    output = folder / "output"
    child = os.fork()
    if child == 0:
        become(folder, output, tests)
    end, late = time.monotonic() + WAIT, False
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end and not late:
            late = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.05)
    if late:
        return LATE
    if ended[1] == 0:
        return ""
    if os.WIFSIGNALED(ended[1]):
        return f"time limit of {' '.join(tests)}"
    text = output.read_text(errors="replace").splitlines()
    if (status := os.waitstatus_to_exitcode(ended[1])) in (BROKEN, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"{tests} did not run: {text[-3:]}")
    failed = [line for line in text if line.startswith(("FAILED", "ERROR"))]
    return (failed or [f"pytest ended with {status}"])[0]


def become(folder: Path, output: Path, tests: Sequence[str]) -> NoReturn:
    """Replace this fork by a run of pytest in a copy of the tree."""
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
            del sys.modules[name]
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = str(folder)
        status = int(pytest.main([*PYTEST, *tests]))
        loaded = str(getattr(sys.modules.get("testbed"), "__file__", ""))
        os._exit(status if loaded.startswith(str(folder)) else BROKEN)
    except BaseException:  # noqa: BLE001 - a fork never goes on as its parent
        traceback.print_exc()
        os._exit(BROKEN)


def try_out(folder: Path, number: int, mutant: Mutant, stages: Sequence[Sequence[str]]) -> str:
    """Make a mutant in a copy of the tree; return the first failure that it causes."""
    path, original = folder / mutant.file, (ROOT / mutant.file).read_text()
    path.write_text(mutant.code())
    os.utime(path, (number + 1, number + 1))  # Python compiles a file again if its time has changed
    try:
        failures = (run(folder, tests) for tests in stages if tests)
        return next((failure for failure in failures if failure not in ("", LATE)), "")
    finally:
        path.write_text(original)


def work(mutants: Sequence[tuple[int, Mutant]], near: bool, answers: Queue) -> None:
    """Try mutants in one copy of the tree, one after the other."""
    tests = Tests()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        copy_tree(folder)
        for number, mutant in mutants:
            named = [path for path in tests.near(mutant.file) if Path(path).stem == tests.name(mutant.file)]
            others = [path for path in tests.near(mutant.file) if path not in named]
            stages = [named, others, *([] if near else tests.far(mutant.file))]
            try:
                answers.put((number, try_out(folder, number, mutant, stages)))
            except RuntimeError as error:
                answers.put((number, error))


def difference(mutant: Mutant) -> list[str]:
    """Return the lines that a mutant changes, before and after."""
    before, after = (ROOT / mutant.file).read_text().splitlines(), mutant.code().splitlines()
    pairs = zip(before, after, strict=False)
    return next(([old.strip(), new.strip()] for old, new in pairs if old != new), [])


def try_all(mutants: Sequence[Mutant], near: bool, processes: int) -> dict[str, object]:
    """Try all mutants in several processes, and return the figures."""
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    numbered = list(enumerate(mutants))
    workers = [
        fork.Process(target=work, args=(numbered[part::processes], near, answers), daemon=True)
        for part in range(processes)
    ]
    for worker in workers:
        worker.start()
    noticed: set[str] = set()
    missed: list[dict[str, object]] = []
    for _ in mutants:
        number, found = answers.get()
        if isinstance(found, RuntimeError):
            raise found
        mutant = mutants[number]
        line = f"{mutant.file}:{mutant.line} {mutant.operator} {difference(mutant)}"
        print(f"{line}: {found or 'MISSED'}", file=sys.stderr, flush=True)
        if found:
            noticed |= set(re.findall(r"tests/\S+\.py", found))
        else:
            missed.append({"file": mutant.file, "line": mutant.line, "change": difference(mutant)})
    for worker in workers:
        worker.join()
    made = len(mutants)
    return {"made": made, "noticed": made - len(missed), "missed": missed, "by": sorted(noticed)}


def main() -> None:
    """Read the command line and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=84, help="mutants to make")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--near", action="store_true", help="run only tests that import the changed file")
    parser.add_argument(
        "--within", action="append", default=[], metavar="PATH", help="draw from this file or folder only"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="FILE:LINE", help="of the drawn mutants"
    )
    parser.add_argument("--list", action="store_true", help="show the drawn mutants and end")
    options = parser.parse_args()
    mutants = sample(options.count, options.seed, options.within, options.only)
    if options.list:
        sys.exit(
            "\n".join(
                f"{mutant.file}:{mutant.line} {mutant.operator} {difference(mutant)}" for mutant in mutants
            )
        )
    sys.path.insert(0, str(ROOT))
    for file in judges():  # the libraries stay loaded for all forks; modules of the tree are loaded again
        importlib.import_module(file.removesuffix(".py").replace("/", "."))
    figures = try_all(mutants, options.near, options.processes)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        copy_tree(Path(name))
        groups = by_folder(figures.pop("by"))  # type: ignore[arg-type]
        false = next(filter(None, (run(Path(name), group) for group in groups)), "")
    if false:
        sys.exit(f"{false}: this fails without any mutant, so its failures prove nothing")
    print(json.dumps({"seed": options.seed, **figures}, indent=1))


if __name__ == "__main__":
    main()
