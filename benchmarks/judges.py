"""Make small changes to the code that judges, and count those that some unit test notices.

    python benchmarks/judges.py [--count 100] [--seed 1] [--only PATH]… [--covered FILE] [--whole]

<<<<<<< branch
A copy of the working tree is changed, never the tree itself. The unit tests run once, with coverage by test; each
change is then tried by the tests that run its place. Places are drawn by the seed, spread over the files in proportion
to their comparisons, conditions, constants, loops, handlers and returns; docstrings, texts and decorators have none.
Prints JSON: changes made, noticed, ended by the time limit, and each change that no test noticed, with its difference.
=======
Cosmic Ray makes the changes: another comparison, a `not` more, a loop that runs zero times, another
exception. They are made in a copy of the working tree. One change is drawn at random for each chosen line, so
that a long line does not count for ten. Prints JSON: changes made, noticed, and each change that no test
noticed, with its difference.
>>>>>>> F
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import inspect
import json
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
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import NoReturn

import pytest
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
JUDGES = ("testbed/verify", "testbed/report", "testbed/plan/diff.py", "testbed/plan/controls.py", "testbed/plan/host_config/parsers.py",
          "testbed/cli/error_exit.py", "checks")  # fmt: skip
COMPARED = "checks/"  # of these files, comparisons and conditions only: their numbers and texts make packets and breaches
PYTEST = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not lint", "--tb=no", "-x")
COVERAGE = ("--cov=testbed", "--cov=checks", "--cov-context=test", "--cov-report=")
LIMIT = 240  # seconds for the tests of one change; a change that never ends counts as noticed
WHOLE = 3600  # seconds for all unit tests
SHARE = 6  # of a processor that is busy with other things, one part in so many counts as time enough
COMPARISONS: Mapping[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Eq: ("==", ("!=",)), ast.NotEq: ("!=", ("==",)), ast.Is: ("is", ("is not",)), ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)), ast.NotIn: ("not in", ("in",)), ast.Lt: ("<", ("<=", ">=")), ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")), ast.GtE: (">=", (">", "<")),
}  # fmt: skip
ARITHMETIC: Mapping[type[ast.operator], tuple[str, str]] = {
    ast.Sub: ("-", "+"),
    ast.BitAnd: ("&", "|"),
    ast.Mult: ("*", "+"),
}
WORDS = {"any": "all", "all": "any", "min": "max", "max": "min", "break": "continue", "continue": "break"}


@dataclass(frozen=True)
class Change:
    """One small change of a file.

    Args:
        span: which octets of the file are replaced.
        lines: first and last line that a test runs if it runs the place.

    """

    file: str
    operator: str
    span: tuple[int, int]
    text: str
    lines: tuple[int, int]

    def made_in(self, source: bytes) -> bytes:
        """Return the changed content of the file."""
        return source[: self.span[0]] + self.text.encode() + source[self.span[1] :]


class Changes(ast.NodeVisitor):
    """Finds every change of a file, by place; texts, decorators and annotations have none."""

    def __init__(self, file: str, source: bytes) -> None:
        self._file, self._source = file, source
        self._starts = [0, *(found.end() for found in re.finditer(b"\n", source))]
        self._statement = 0
        self.places: dict[tuple[int, int], list[Change]] = defaultdict(list)
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        """Note the changes of a node and of the nodes below it."""
        if isinstance(node, ast.JoinedStr):
            return
        before = self._statement
        if isinstance(node, ast.stmt):
            self._statement = node.lineno
        for operator, span, text in self._of(node):
            last = self._source[: span[1]].count(b"\n") + 1
            self.places[span].append(Change(self._file, operator, span, text, (self._statement, last)))
        for name, value in ast.iter_fields(node):
            if name not in ("decorator_list", "annotation", "returns"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self.visit(child)
        self._statement = before

    def _at(self, node: ast.expr) -> tuple[int, int]:
        end_line, end_column = node.end_lineno or 0, node.end_col_offset or 0
        return self._starts[node.lineno - 1] + node.col_offset, self._starts[end_line - 1] + end_column

    def _code(self, node: ast.expr) -> str:
        start, end = self._at(node)
        return self._source[start:end].decode()

    def _between(self, left: ast.expr, right: ast.expr, word: str) -> tuple[int, int]:
        """Return where an operator stands between its operands, beside brackets."""
        start, end = self._at(left)[1], self._at(right)[0]
        pattern = rb"\s+".join(re.escape(part.encode()) for part in word.split())
        found = re.search(rb"(?<![\w<>=!])" + pattern + rb"(?![\w=])", self._source[start:end])
        return (start + found.start(), start + found.end()) if found else (start, start)

    def _of(self, node: ast.AST) -> Iterator[tuple[str, tuple[int, int], str]]:
        """Yield operator, octets and new text of each change of a node itself."""
        yield from self._of_logic(node)
        if not self._file.startswith(COMPARED):
            yield from self._of_values(node)

    def _of_logic(self, node: ast.AST) -> Iterator[tuple[str, tuple[int, int], str]]:
        match node:
            case ast.Compare():
                for left, operator, right in zip(
                    [node.left, *node.comparators], node.ops, node.comparators, strict=False
                ):
                    word, others = COMPARISONS[type(operator)]
                    yield from (
                        (f"{word} to {other}", self._between(left, right, word), other) for other in others
                    )
            case ast.BoolOp():
                word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield f"{word} to {other}", self._between(left, right, word), other
            case ast.UnaryOp(op=ast.Not()):
                yield "not left out", self._at(node), f"({self._code(node.operand)})"
            case ast.If() | ast.While() | ast.IfExp() | ast.Assert():
                yield "condition negated", self._at(node.test), f"(not ({self._code(node.test)}))"
            case ast.comprehension():
                for test in node.ifs:
                    yield "filter negated", self._at(test), f"(not ({self._code(test)}))"
            case ast.Constant(value=bool() as value):
                yield f"{value} to {not value}", self._at(node), str(not value)
            case ast.Call(func=ast.Name(id=word)) if word in WORDS:
                yield f"{word} to {WORDS[word]}", self._at(node.func), WORDS[word]

    def _of_values(self, node: ast.AST) -> Iterator[tuple[str, tuple[int, int], str]]:
        match node:
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                yield "number plus 1", self._at(node), f"({self._code(node)} + 1)"
                yield "number minus 1", self._at(node), f"({self._code(node)} - 1)"
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                word, other = ARITHMETIC[type(node.op)]
                yield f"{word} to {other}", self._between(node.left, node.right, word), other
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield "nothing returned", self._at(value), "None"
            case ast.For():
                yield "no round of a loop", self._at(node.iter), "()"
            case ast.ExceptHandler(type=ast.expr() as kind):
                yield "other exception", self._at(kind), "ZeroDivisionError"
            case ast.Break() | ast.Continue():
                start = self._starts[node.lineno - 1] + node.col_offset
                word = type(node).__name__.lower()
                yield f"{word} to {WORDS[word]}", (start, start + len(word)), WORDS[word]


def copy_tree(folder: Path) -> None:
    """Copy the files of the working tree that git does not ignore."""
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def modules(folder: Path, only: Sequence[str]) -> list[str]:
    """Return the files that judge, relative to a copy of the tree.

    They are sorted by name, so that a file in another folder changes no draw of others.
    """
    found: set[Path] = set()
    for name in only or JUDGES:
        found |= set((folder / name).rglob("*.py")) if (folder / name).is_dir() else {folder / name}
    return [
        str(path.relative_to(folder))
        for path in sorted(found, key=lambda path: (path.name, path))
        if path.name != "__init__.py"
    ]


def sample(folder: Path, files: Sequence[str], count: int, seed: int) -> list[Change]:
    """Return one change at each of so many places, spread over the files by their number of places."""
    places: list[list[Change]] = []
    for file in files:
        of_file = list(Changes(file, (folder / file).read_bytes()).places.values())
        random.Random(f"{seed} {Path(file).name}").shuffle(of_file)
        places += of_file
    draw = random.Random(seed)
    step = max(1.0, len(places) / count)
    start = draw.random() * step
    drawn = [draw.choice(places[int(start + number * step)]) for number in range(min(count, len(places)))]
    return [change for change in drawn if _compiles(change.made_in((folder / change.file).read_bytes()))]


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "-", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class Tests:
    """The unit tests of a copy of the tree, and which of them run which line.

    Args:
        covered: coverage by test, of an earlier run on the same code; all tests are run for it if empty.

    """

    def __init__(self, folder: Path, covered: str) -> None:
        self._folder, self._output = folder, folder / "output"
        os.environ.update(PYTHONPATH=str(folder), COVERAGE_FILE=covered or str(folder / "covered"))
        sys.path[0] = str(folder)
        os.chdir(folder)
        self.unfit: list[str] = []
        self._lines: dict[str, dict[int, list[str]]] = {}
        if not covered:
            self.run(["tests/unit", *COVERAGE, "--maxfail=0"], WHOLE)
            self.unfit = sorted({line.split()[1].split("[")[0] for line in self._failures()})
        self._data = CoverageData(os.environ["COVERAGE_FILE"])
        self._data.read()
        self.load()
        self._root = next(
            Path(path).parents[1]
            for path in self._data.measured_files()
            if path.endswith("/testbed/errors.py")
        )

    def of(self, change: Change) -> list[str]:
        """Return the tests that run the place of a change.

        For a place that runs on import only, these are all tests that run its file.
        """
        by_line = self._lines.setdefault(change.file, {}) or self._data.contexts_by_lineno(
            str(self._root / change.file)
        )
        self._lines[change.file] = by_line
        first, last = change.lines
        found = {context for line in range(first, last + 1) for context in by_line.get(line, [])}
        if found == {""}:
            found = {context for contexts in by_line.values() for context in contexts}
        return sorted({context.split("|")[0].split("[")[0] for context in found if context} - set(self.unfit))

    @staticmethod
    def load() -> None:
        """Import all unit tests and the tested modules into this process, for its forks."""
        with redirect_stdout(sys.stderr):
            pytest.main(["--collect-only", "-qq", *PYTEST, "tests/unit"])

    def try_out(self, change: Change, source: bytes) -> str:
        """Return the first failure that a change causes.

        First it replaces the code of loaded functions; if no test fails, all modules are loaded again.
        """
        tests, codes = self.of(change), changed_functions(change, source, str(self._folder / change.file))
        functions = (
            [item for item in gc.get_objects() if isinstance(item, FunctionType) and item.__code__ in codes]
            if codes
            else []
        )
        found = (
            self.run(tests, LIMIT, {item: codes[item.__code__] for item in functions})
            if tests and functions
            else ""
        )
        return found or (self.run(tests, LIMIT) if tests else "")

    def run(
        self, tests: Sequence[str], limit: int, codes: Mapping[FunctionType, CodeType] | None = None
    ) -> str:
        """Run tests in a fork of this process; return nothing if they pass, else the first failure.

        Args:
            codes: other code of loaded functions; if there is none, all modules of the tree are loaded again.

        """
        child = os.fork()
        if child == 0:
            self._become([*PYTEST, *tests], codes or {}, limit)
        end = time.monotonic() + limit
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "time limit"
            time.sleep(0.05)
        if os.WIFSIGNALED(ended[1]):
            return "time limit"
        return (
            ""
            if ended[1] == 0
            else (self._failures() or [f"pytest has ended with {os.waitstatus_to_exitcode(ended[1])}"])[0]
        )

    def _failures(self) -> list[str]:
        return [
            line
            for line in self._output.read_text(errors="replace").splitlines()
            if line.startswith(("FAILED", "ERROR"))
        ]

    def _become(self, arguments: list[str], codes: Mapping[FunctionType, CodeType], limit: int) -> NoReturn:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (limit // SHARE, limit // SHARE))
        output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if not codes:
            own = f"{self._folder}/"
            for name in [
                name
                for name, module in sys.modules.items()
                if str(getattr(module, "__file__", "")).startswith(own)
            ]:
                del sys.modules[name]
        for function, code in codes.items():
            function.__code__ = code
        os._exit(pytest.main(arguments))


def changed_functions(change: Change, source: bytes, path: str) -> dict[CodeType, CodeType]:
    """Return the old and new code of each changed function.

    Nothing, if the change is in code that runs on import.
    """
    old, new = (compile(text, path, "exec", dont_inherit=True) for text in (source, change.made_in(source)))
    pairs = [(old, new)]
    found: dict[CodeType, CodeType] = {}
    while pairs:
        old, new = pairs.pop()
        inner = [[item for item in code.co_consts if isinstance(item, CodeType)] for code in (old, new)]
        outer = [
            tuple(item for item in code.co_consts if not isinstance(item, CodeType)) for code in (old, new)
        ]
        bare = [
            code.replace(co_consts=consts, co_linetable=b"")
            for code, consts in zip((old, new), outer, strict=True)
        ]
        if not old.co_flags & inspect.CO_OPTIMIZED and (bare[0] != bare[1] or len(inner[0]) != len(inner[1])):
            return {}
        if old.co_flags & inspect.CO_OPTIMIZED and old != new:
            found[old] = new
        pairs += zip(*inner, strict=False)
    return found


def run(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Make the changes in a copy of the tree, and run the tests on each."""
    chosen = sample(folder, modules(folder, options.only), options.count, options.seed)
    tests = Tests(folder, options.covered)
    missed: list[dict[str, object]] = []
    noticed_by: Counter[str] = Counter()
    started = time.monotonic()
    for number, change in enumerate(chosen):
        path, source = folder / change.file, (folder / change.file).read_bytes()
        kept = path.stat().st_mtime
        path.write_bytes(change.made_in(source))
        os.utime(path, (number, number))  # Python compiles a file again if its time or size has changed
        try:
            found = tests.try_out(change, source)
            if not found and options.whole:
                found = tests.run(["tests/unit"], WHOLE)
        finally:
            path.write_bytes(source)
            os.utime(path, (kept, kept))
        line = source[: change.span[0]].count(b"\n") + 1
        print(f"{change.file}:{line} {change.operator}: {found or 'MISSED'}", file=sys.stderr, flush=True)
        if found:
            noticed_by[found.split(" - ")[0].removeprefix("FAILED ")] += 1
            continue
        before, after = (text.decode().splitlines() for text in (source, change.made_in(source)))
        diff = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
        missed.append(
            {
                "file": change.file,
                "line": line,
                "operator": change.operator,
                "tests": len(tests.of(change)),
                "diff": diff,
            }
        )
    used = [name for name in noticed_by if name.startswith("tests/")]
    false = used and (tests.run(used, WHOLE) or tests.run(used, WHOLE, {main: main.__code__}))  # type: ignore[dict-item]
    if false:
        sys.exit(f"{false}: this test fails without any change, so its failures prove nothing")
    made, noticed = len(chosen), sum(noticed_by.values())
    return {
        "seed": options.seed, "changes": made, "noticed": noticed, "by the time limit": noticed_by["time limit"],
        "ratio": round(noticed / made, 3), "seconds": round(time.monotonic() - started), "missed": missed,
    }  # fmt: skip


def main() -> None:
    """Read the command line, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="changes to make")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATH", help="a file or folder instead of every judge"
    )
    parser.add_argument(
        "--covered", metavar="FILE", help="coverage by test, of an earlier run on the same code"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="try all unit tests on changes that the fitting ones do not notice",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        copy_tree(Path(name))
        print(json.dumps(run(Path(name), options), indent=1))


if __name__ == "__main__":
    main()
