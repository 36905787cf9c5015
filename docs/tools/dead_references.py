"""Finds references that lead nowhere, in documents, docstrings and comments.

Covered: links and their anchors, paths and file names, dotted names of modules, control ids, decisions by
code (D1) or number (0014), sections of docs/design.md. Strings of programs are not read, except docstrings.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from docs.tools.catalogue import CONTROL, controls

_FOLDERS = (
    "testbed",
    "checks",
    "tests",
    "docs",
    "playbooks",
    "script",
    "topologies",
    "benchmarks",
    "examples",
    ".ci",
    ".github",
)
_CODE = (
    "testbed",
    "checks",
    "tests",
    "playbooks",
    "script",
    "topologies",
    "benchmarks",
    "docs",
    ".ci",
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(rf"(?<![\w/.~-])(?:{'|'.join(map(re.escape, _FOLDERS))})/[\w./-]*\w(?![\w*]|/?\*)")
_FILE = re.compile(r"(?<![\w/.*~-])[A-Za-z_][\w-]*\.(?:md|py)\b")
_MODULE = re.compile(r"(?<![\w/.-])(?:testbed|checks|tests)(?:\.[A-Za-z_]\w*)+")
_CODE_OF_DECISION = re.compile(r"(?<![\w-])D([0-9]{1,2})(?![\w-])")
_NUMBER = re.compile(r"(?<![\w.:+-])00[0-9]{2}(?![\w.:]\w)")
_SECTION = re.compile(r"design\.md,?\s+section ([0-9]+)")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
_OLD_NAME = re.compile(r"← \S+")  # behind the arrow of a table of moves stands a name that is gone
# Words that look like a reference and are none.
_NO_REFERENCE = {
    "report.md": "a file of a run's folder",
    "testbed.sarif": "a file of a pipeline's report",
    "testbed.golden": "a word of a kernel's command line",
}


@dataclass(frozen=True)
class Tree:
    """The files of a repository, and everything in it that can be referred to."""

    root: Path
    extra: dict[str, str] = field(default_factory=dict)  # texts by path, instead of or beside files

    def text(self, path: str) -> str:
        """Return the text of a file."""
        return self.extra[path] if path in self.extra else (self.root / path).read_text()

    @cached_property
    def files(self) -> frozenset[str]:
        """Paths of all files below the folders of the project, and of those at the top."""
        found = [path for path in self.root.iterdir() if path.is_file()]
        found += [path for folder in _FOLDERS for path in (self.root / folder).rglob("*") if path.is_file()]
        return frozenset(
            path.relative_to(self.root).as_posix() for path in found if "__pycache__" not in path.parts
        ) | set(self.extra)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all files, without their folders."""
        return frozenset(path.rpartition("/")[2] for path in self.files)

    @cached_property
    def folders(self) -> frozenset[str]:
        """Paths of all folders that contain a file."""
        return frozenset(parent.as_posix() for path in self.files for parent in Path(path).parents)

    @cached_property
    def controls(self) -> frozenset[str]:
        """Ids of the controls that docs/controls.md explains."""
        return frozenset(controls(self.text("docs/controls.md")))

    @cached_property
    def decisions(self) -> frozenset[str]:
        """Codes and numbers of decisions that have a heading or a page."""
        codes = re.findall(r"^### (D[0-9]+):", self.text("docs/design.md"), re.MULTILINE)
        numbers = [Path(path).name[:4] for path in self.files if path.startswith("docs/decisions/0")]
        unused = re.findall(r"Number ([0-9]{4}) was never used", self.text("docs/decisions/index.md"))
        return frozenset((*codes, *numbers, *unused))

    @cached_property
    def sections(self) -> frozenset[str]:
        """Numbers of the sections of docs/design.md."""
        return frozenset(re.findall(r"^## ([0-9]+)\.", self.text("docs/design.md"), re.MULTILINE))

    def anchors(self, path: str) -> frozenset[str]:
        """Return the anchors of a Markdown file, as its headings give them."""
        words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(self.text(path)))
        return frozenset(word.replace(" ", "-") for word in words)

    def has_path(self, path: str) -> bool:
        """Return True if a path is a file, with or without its `.py`, or a folder."""
        return bool({path, f"{path}.py"} & self.files) or path in self.folders

    def has_module(self, name: str) -> bool:
        """Return True if a dotted name is a module, a package, or a name that a module contains."""
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            path = "/".join(parts[:count])
            if count == len(parts) and path in self.folders:
                return True
            if f"{path}.py" in self.files:
                rest = parts[count : count + 1]
                return not rest or re.search(rf"\b{rest[0]}\b", self.text(f"{path}.py")) is not None
        return False


def dead(tree: Tree) -> list[str]:
    """Return every dead reference of a tree in words, with its file."""
    return [
        f"{path}: {finding}"
        for path in sorted(tree.files)
        for finding in dict.fromkeys(_findings(tree, path))
    ]


def _findings(tree: Tree, path: str) -> Iterator[str]:
    if path.endswith(".md"):
        text = tree.text(path)
        yield from _links(tree, path, text)
        yield from _words(tree, text)
    elif path.partition("/")[0] in _CODE and not path.startswith(("tests/golden/", "docs/tools/")):
        if path.endswith(".py"):
            yield from _words(tree, prose(tree.text(path)))
        elif path.endswith((".yml", ".yaml", ".sh")) or "." not in path.rpartition("/")[2]:
            yield from _words(tree, "\n".join(re.findall(r"#(.*)", tree.text(path))))


def prose(source: str) -> str:
    """Return the docstrings and comments of a Python program."""
    found = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join((*found, *(token.string for token in tokens if token.type == tokenize.COMMENT)))


def _links(tree: Tree, path: str, text: str) -> Iterator[str]:
    for target in _LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = _joined(path, name) if name else path
        if file not in tree.files and file not in tree.folders:
            yield f"link to {target}"
        elif anchor and file.endswith(".md") and anchor not in tree.anchors(file):
            yield f"link to {target}, a heading that does not exist"


def _joined(path: str, name: str) -> str:
    parts = path.split("/")[:-1]
    for part in name.rstrip("/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _words(tree: Tree, text: str) -> Iterator[str]:
    text = _OLD_NAME.sub("", _LINK.sub("]", text))
    for found in _PATH.findall(text):
        beginning = re.fullmatch(r"docs/decisions/[0-9]{4}", found)
        known = found[-4:] in tree.decisions if beginning else tree.has_path(found)
        if not known:
            yield f"path {found}"
    yield from (
        f"file {found}" for found in _FILE.findall(text) if found not in tree.names | set(_NO_REFERENCE)
    )
    yield from (
        f"module {found}"
        for found in _MODULE.findall(text)
        if found not in _NO_REFERENCE and not tree.has_module(found)
    )
    yield from (f"control {found}" for found in CONTROL.findall(text) if found not in tree.controls)
    yield from (
        f"decision D{found}" for found in _CODE_OF_DECISION.findall(text) if f"D{found}" not in tree.decisions
    )
    yield from (f"decision {found}" for found in _NUMBER.findall(text) if found not in tree.decisions)
    yield from (
        f"section {found} of docs/design.md" for found in _SECTION.findall(text) if found not in tree.sections
    )
