"""A result fits the terminal, whatever is in it, and shows failures last."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.cli.output import display, terminal
from testbed.model.exposure import contacts
from testbed.model.reachability import ReachMatrix
from testbed.model.resolve import resolve
from testbed.report import columns, reach, screen
from testbed.report.result import CheckResult, Proof, ProofVerdict, Run, Verdict, to_json
from testbed.topology_file.loader import read

WIDTHS = (20, 40, 80, 120, 200)
HOSTILE = (
    "[red]not red[/red] \x1b[31m\u202e \\[/x] "
    "日本語日本語 e\u0301\u0301\u0301\u0301\u0301 ::error::told ::set-output "
    f"##vso[task.complete] \n::warning::told\r\n  ::error::told {'w' * 300} {'漢' * 100} ## [x] \ud800"
)
LONG = "a guest reaches another one, although no flow leads from the one to the other, by IPv6 and by a tag"


def _of(
    control: str, case: str, verdict: Verdict, reason: str = "", objective: str = "it holds", *proofs: Proof
) -> CheckResult:
    return CheckResult(control, case, objective, "high", verdict, reason, False, 12.345, (), proofs)


def _run(*checks: CheckResult, trouble: tuple[str, ...] = ()) -> dict[str, Any]:
    return to_json(Run("lab", "ab12", {"outer": "kvm", "inner": "tcg"}, "now", 9.5, checks, (), trouble))


CANNOT = Proof(ProofVerdict.CANNOT_FAIL, HOSTILE, HOSTILE, ())
PROVEN = Proof(ProofVerdict.PROVEN, "opens it", "", ())
MIXED = (
    _of("NET-10", "node10", Verdict.PASS, "", LONG, PROVEN, PROVEN),
    _of("NET-02", "fleet", Verdict.FAIL, LONG),
    _of("NET-10", "node2", Verdict.PASS, "", LONG, PROVEN, CANNOT),
    _of("ACC-01", "node1", Verdict.INCONCLUSIVE, "the node is silent"),
    _of("ACC-01", "node2", Verdict.NOT_APPLICABLE, "there is no guest"),
    _of("NET-02", "other", Verdict.FAIL, LONG),
)


def _rows(name: str = "two-tenants") -> list[dict[str, Any]]:
    lab = resolve(read(Path(__file__).parents[3] / f"topologies/{name}.yaml").spec)
    return [cell.as_row(cell.allowed) for cell in (*ReachMatrix.of(lab).cells, *contacts(lab))]


def _require_fitting(lines: list[columns.Line], width: int) -> None:
    for line in lines:
        assert columns.cells(line.plain) <= width, line
        assert not line.plain.lstrip().startswith("::"), line
        assert "##vso[" not in line.plain
        assert line.plain.isprintable()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "place", ["id", "case", "objective", "reason", "duration_s", "breach", "trouble", "lab", "outer"]
)
def test_no_line_is_wider_than_the_terminal_whatever_stands_where(width: int, place: str) -> None:
    data = _run(*MIXED, trouble=(HOSTILE if place == "trouble" else "it broke off",))
    for check in data["checks"]:
        if place in check:
            check[place] = HOSTILE
        for proof in check["proofs"]:
            proof.update({place: HOSTILE} if place == "breach" else {"breach": "b", "reason": "r"})
    data["lab"]["name"] = HOSTILE if place == "lab" else "lab"
    data["environment"]["outer"] = HOSTILE if place == "outer" else "kvm"
    _require_fitting(screen.verdicts(data, width), width)


def test_the_first_line_breaks_only_where_it_must() -> None:
    whole = "lab lab: nodes under kvm, guests under tcg"
    assert screen.verdicts(_run(), len(whole) + 2)[0].plain == whole
    assert screen.verdicts(_run(), len(whole) + 1)[0].plain == whole.rpartition(" ")[0]


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_a_matrix_fits_the_terminal_and_is_short(width: int) -> None:
    rows = _rows("three-tenants-dual-stack")
    lines = reach.matrices(rows, width)
    _require_fitting(lines, width)
    names = {str(row[end]).partition(" at ")[0] for row in rows for end in ("source", "target")}
    networks = {name.partition("@")[2] for name in names if "/" not in name}
    assert width < 80 or len(lines) <= 3 + len(names) + 1 + len(networks) + 3
    rows[0].update(source=HOSTILE, observed=True)
    rows[7].update(target=HOSTILE, observed=True)
    _require_fitting(reach.matrices(rows, width), width)


def test_the_table_is_ordered_by_control_and_case_with_seconds_in_one_column() -> None:
    lines = screen.text(_run(*MIXED), 120).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("verdict"))
    head, *table = lines[start : lines.index("", start)]
    rows = [line.split() for line in table if not line.startswith(" ")]
    assert [row[1:3] for row in rows] == [
        ["ACC-01", "node1"],
        ["ACC-01", "node2"],
        ["NET-02", "fleet"],
        ["NET-02", "other"],
        ["NET-10", "node2"],
        ["NET-10", "node10"],
    ]
    assert [row[0] for row in rows] == ["inconclusive", "n/a", "FAIL", "FAIL", "pass", "pass"]
    end = head.index("seconds") + len("seconds")
    assert all(line[:end].endswith(" 12.3") for line in table if not line.startswith(" "))
    assert [row[4] for row in rows[-2:]] == ["1/2", "2/2"]
    assert (
        "\n".join(lines).count(LONG[:40]) == 2
    )  # in the table once for both nodes, and as the reason of both failures


@pytest.mark.parametrize("width", [80, 120, 200])
def test_failures_stand_last_with_their_reason_in_whole(width: int) -> None:
    *_, notes, verdict = screen.text(_run(*MIXED, trouble=("it broke off",)), width).split("\n\n")
    words = " ".join(line.strip().removeprefix("| ") for line in notes.splitlines())
    parts = (
        "cannot-fail NET-10 node2:",
        "trouble: it broke",
        "inconclusive ACC-01 node1:",
        "FAIL NET-02 fleet, other:",
    )
    order = [words.index(part) for part in parts]
    assert order == sorted(order)
    assert words.endswith(f"FAIL NET-02 fleet, other: {LONG}")
    assert verdict.startswith("OPEN WALLS: 2 pass, 2 fail")


def test_a_sentence_that_is_too_long_says_where_the_rest_is() -> None:
    lines = screen.text(_run(_of("A", "b", Verdict.FAIL, "word " * 400)), 80).splitlines()
    told = " ".join(line.strip().removeprefix("| ") for line in lines)
    assert "… (more in the report)" in told
    assert told.count("word") < 150


def test_a_narrow_terminal_has_the_objective_below() -> None:
    lines = screen.text(_run(*MIXED), 40).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAIL"))
    assert lines[at].split() == ["FAIL", "NET-02", "fleet", "12.3"]
    assert lines[at + 1] == "  it holds"


def test_a_matrix_says_what_passes_and_names_what_is_wrong() -> None:
    rows = _rows()
    first = next(row for row in rows if not row["allowed"] and row["target"] == "red/db@app")
    first["observed"] = True
    dead = next(row for row in rows if row["allowed"] and row["source"] == "blue/web@app")
    dead["observed"] = False
    lines = [line.plain for line in reach.matrices(rows)]
    assert lines[2].split() == ["1", "red/web@app", "-", "!", ".", "."]
    assert lines[4].split() == ["3", "blue/web@app", ".", ".", "-", "x"]
    assert lines[5].split() == ["4", "blue/db@app", ".", ".", "a", "-"]
    assert f"LEAK red/web@app -> red/db@app: {first['protocol']}" in lines
    assert any(line.startswith("DEAD blue/web@app -> blue/db@app: ") for line in lines)
    assert any(line.startswith("signs: a arp; ") for line in lines)
    assert len(lines) < 25


def test_wide_characters_and_marks_stay_whole() -> None:
    assert columns.cells("日本") == 4
    assert columns.cells("e\u0301") == 1
    assert columns.shorten("日本語", 5) == "日本…"
    assert columns.shorten("日本語", 6) == "日本語"
    assert columns.shorten("abc", 1) == "…"
    assert columns.wrap("e\u0301" * 5, 4) == ["e\u0301" * 4, "e\u0301"]
    assert columns.wrap("one two three", 7) == ["one two", "three"]
    assert columns.wrap("go ::error::x", 10) == ["go", "| ::error:", ":x"]


class _Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "colour"),
    [
        (_Terminal, {"TERM": "xterm"}, True),
        (_Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (_Terminal, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (_Terminal, {"TERM": "dumb"}, False),
        (_Terminal, {"TERM": "xterm", "CI": "true"}, False),
        (_Terminal, {"TERM": "xterm", "CI": "true", "FORCE_COLOR": "1"}, True),
        (_Terminal, {}, False),
        (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_people_who_watch(
    stream: Any, environment: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = stream()
    monkeypatch.setattr(sys, "stdout", found)
    terminal.show(screen.verdicts(_run(*MIXED, trouble=(HOSTILE,)), 80))
    shown = found.getvalue()
    assert ("\x1b[1;31mFAIL\x1b[0m" in shown) is colour
    assert ("\x1b" in shown) is colour
    assert "[red]not red[/red]" in shown.replace("\n    | ", " ")
    plain = "".join(
        part.partition("m")[2] if number else part for number, part in enumerate(shown.split("\x1b["))
    )
    assert plain.rstrip("\n") == screen.text(_run(*MIXED, trouble=(HOSTILE,)), 80).rstrip("\n")


def test_an_unknown_width_is_a_fixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert display.width_of(None) == columns.WIDTH == 120
    monkeypatch.setenv("COLUMNS", "61")
    assert display.width_of(None) == 61
    for wrong in ("0", "wide", "-5", "99999999"):
        monkeypatch.setenv("COLUMNS", wrong)
        assert display.width_of(None) == columns.WIDTH
