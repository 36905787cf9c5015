"""Every reference of a document, docstring or comment leads somewhere.

Documents keep their form.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.tools.dead_references import Tree, dead, prose

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WIDTH = 110
BASE = {
    "docs/controls.md": "| S1 | claim |\n| NET-01 | threat | S1 |\n",
    "docs/design.md": "## 6. Verdicts\n\n### D1: One\n",
    "docs/decisions/index.md": "Number 0002 was never used.",
    "docs/decisions/0001-first.md": "# 0001: First\n",
    "testbed/one.py": "def there() -> None: ...\n",
}


def test_no_reference_is_dead() -> None:
    assert dead(Tree(ROOT)) == []


def _dead(tmp_path: Path, file: str, text: str) -> list[str]:
    return [finding.removeprefix(f"{file}: ") for finding in dead(Tree(tmp_path, BASE | {file: text}))]


@pytest.mark.parametrize(("text", "finding"), [
    ("[a](controls.md)", []),
    ("[a](controls.md#none)", ["link to controls.md#none, a heading that does not exist"]),
    ("[a](design.md#6-verdicts)", []),
    ("[a](gone.md)", ["link to gone.md"]),
    ("[a](../testbed/one.py) [b](https://example.org/x.md)", []),
    ("`testbed/one.py` and testbed/two.py", ["path testbed/two.py"]),
    ("`testbed/one` ← testbed/old, `testbed/new`", ["path testbed/new"]),
    ("`one.py`, `two.py`, OTHER.md", ["file two.py", "file OTHER.md"]),
    ("`testbed.one`, `testbed.one.there`, `testbed.two`", ["module testbed.two"]),
    ("`testbed.one.gone`", ["module testbed.one.gone"]),
    ("NET-01 and NET-02", ["control NET-02"]),
    ("(D1), D2", ["decision D2"]),
    ("decision 0001, 0002 and (0003)", ["decision 0003"]),
    ("docs/decisions/0001 and docs/decisions/0004", ["path docs/decisions/0004", "decision 0004"]),
    ("docs/design.md, section 6; docs/design.md, section 9", ["section 9 of docs/design.md"]),
    ("mode 0600, /var/lib/testbed/gone.py, `report.md`", []),
])  # fmt: skip
def test_a_dead_reference_of_a_document_is_found(tmp_path: Path, text: str, finding: list[str]) -> None:
    found = _dead(tmp_path, "docs/page.md", text)
    assert [
        item for item in found if not (item == "decision 0004" and "decision 0004" not in finding)
    ] == finding


def test_docstrings_and_comments_are_read_and_strings_are_not(tmp_path: Path) -> None:
    program = (
        '"""One (D1)."""\n\n\n'
        'def f() -> str:\n    """Two (D2)."""\n    # see docs/gone.md\n    return "D3 and DESIGN.md"\n'
    )
    assert _dead(tmp_path, "testbed/two.py", program) == ["path docs/gone.md", "decision D2"]
    assert "D3" not in prose(program)
    assert _dead(tmp_path, "script/run", "#!/bin/sh\n# NET-77\necho NET-78\n") == ["control NET-77"]


def test_every_decision_is_in_the_index_with_its_title() -> None:
    index = (ROOT / "docs/decisions/index.md").read_text()
    pages = sorted((ROOT / "docs/decisions").glob("0*.md"))
    assert len(pages) > 25
    for page in pages:
        title = page.read_text().partition("\n")[0]
        assert re.fullmatch(rf"# {page.name[:4]}: [A-Z0-9].*[^.]", title), page.name
        assert f"- [{title.removeprefix('# ')}]({page.name})\n" in index


def test_every_page_can_be_reached_from_the_index() -> None:
    linked = {ROOT / "docs/index.md"}
    left = list(linked)
    while left:
        page = left.pop()
        targets = {
            (page.parent / name).resolve()
            for name in re.findall(r"\]\(([^)#]+\.md)", page.read_text())
            if ":" not in name
        }
        left += targets - linked
        linked |= targets
    assert [
        str(page.relative_to(ROOT)) for page in PAGES if page not in linked and page.name != "README.md"
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_a_page_are_short(page: Path) -> None:
    """Rows of tables are exempt, and lines that are long because of a link."""
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(re.sub(r"\]\([^)]*\)", "]", line)) > WIDTH] == []


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.lint
def test_the_tools_of_the_documents_are_clean() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "docs"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
