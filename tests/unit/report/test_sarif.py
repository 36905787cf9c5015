"""SARIF: valid by the schema of other people, complete, stable from run to run, and inert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import Exit
from testbed.report.result import CheckResult, Proof, ProofVerdict, Run, Verdict, exit_code, to_json
from testbed.report.sarif import sarif
from testbed.topology_file.loader import ParsedFile, load

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / ".venv/node/node_modules/@microsoft/jest-sarif/lib/schemas/sarif-2.1.0-rtm.5.json"
TEXT = """\
version: 1
name: lab
nodes: {node-a: {}}
tenants:
  red:
    networks: {app: 10.0.0.0/24}
    guests:
      web: {}
      db: {}
  blue:
    networks: {app: 10.0.0.0/24}
    guests:
      web: {}
"""
HOSTILE = (
    "\x1b[2J [a link](http://x) {0} {1} \\[ ##vso[x] \n::error::x \u202e\ud800 <script> @somebody"
    + "y" * 5000
)


def topology(file: str = "topologies/a lab.yaml") -> ParsedFile:
    return load(TEXT, file)


def check(
    verdict: Verdict = Verdict.PASS,
    reason: str = "",
    *proofs: ProofVerdict,
    case: str = "fleet",
    left_out: bool = False,
) -> CheckResult:
    made = tuple(Proof(kind, "a breach", "why", ("green",)) for kind in proofs)
    return CheckResult(
        "NET-01",
        case,
        "Only what is allowed passes",
        "critical",
        verdict,
        reason,
        False,
        1.5,
        (),
        made,
        left_out,
    )


def data(
    *checks: CheckResult, trouble: tuple[str, ...] = (), started: str = "2026-01-01T00:00:00+00:00"
) -> dict[str, Any]:
    return to_json(Run("lab", "ab12", {"outer": "tcg"}, started, 9.5, checks, (), trouble, ("NET-01",)))


def run_of(content: dict[str, Any], found: ParsedFile | None = None) -> dict[str, Any]:
    written = json.loads(sarif(content, found, version="1.2.3"))
    (only,) = written["runs"]
    assert isinstance(only, dict)
    return only


CASES = [
    (data(check()), []),
    (data(check(Verdict.FAIL, "red/web -> blue/web tcp/7")), [("NET-01", "error", 8)]),
    (data(check(Verdict.INCONCLUSIVE, "node-a is silent", case="node-a")), [("NET-01", "warning", 3)]),
    (data(check(Verdict.INCONCLUSIVE, "no guest answers")), [("NET-01", "warning", 2)]),
    (data(check(Verdict.PASS, "", ProofVerdict.PROVEN, ProofVerdict.LEFT_OUT)), []),
    (data(check(Verdict.PASS, "", ProofVerdict.CANNOT_FAIL)), [("NET-01", "error", 2)]),
    (data(check(Verdict.PASS, "", ProofVerdict.DIRTY_REVERT)), [("NET-01", "error", 2)]),
    (data(check(Verdict.PASS, "", ProofVerdict.UNPROVEN)), [("NET-01", "warning", 2)]),
    (data(check(Verdict.FAIL, HOSTILE), trouble=(HOSTILE,)), [("NET-01", "error", 2), ("RUN", "warning", 2)]),
    (data(check(), trouble=("blue/web has crashed",)), [("RUN", "warning", 13)]),
    (data(), [("NET-01", "warning", 2), ("RUN", "warning", 2)]),
    (data(check(Verdict.NOT_APPLICABLE, "no guest")), [("RUN", "warning", 2)]),
    (
        data(check(Verdict.NOT_APPLICABLE, "slow", left_out=True)),
        [("NET-01", "warning", 2), ("RUN", "warning", 2)],
    ),
]


@pytest.mark.parametrize(("content", "expected"), CASES)
def test_all_that_keeps_the_exit_code_from_0_is_a_result_at_its_line(
    content: dict[str, Any], expected: list[tuple[str, str, int]]
) -> None:
    found = run_of(content, topology())
    shown = []
    for result in found["results"]:
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"] == {"uri": "topologies/a%20lab.yaml", "uriBaseId": "%SRCROOT%"}
        shown.append((result["ruleId"], result["level"], place["region"]["startLine"]))
    assert shown == expected
    code = exit_code(content)
    assert (code is Exit.OK) is (not expected)
    assert found["invocations"][0]["exitCode"] == code


@pytest.mark.parametrize(("content", "_expected"), CASES)
def test_it_is_valid_by_the_schema_of_other_people(content: dict[str, Any], _expected: object) -> None:
    validator = _validator()
    for found in (None, topology(), topology("file:///elsewhere/lab.yaml")):
        written = json.loads(sarif(content, found, version="1.2.3"))
        assert [error.message for error in validator.iter_errors(written)] == []


def test_the_schema_refuses_a_wrong_document() -> None:
    validator = _validator()
    for path, value in (
        (("version",), "2.2"),
        (("runs", 0, "results", 0, "level"), "bad"),
        (("runs", 0, "tool"), {}),
    ):
        written: Any = json.loads(sarif(data(check(Verdict.FAIL, "x")), topology(), version="1"))
        place = written
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
        assert list(validator.iter_errors(written)), path


def _validator() -> Any:
    jsonschema = pytest.importorskip(
        "jsonschema", reason="jsonschema is not installed: run script/setup --tests"
    )
    if not SCHEMA.is_file():
        pytest.skip("the schema of SARIF is not installed: run script/setup --tests, where npm is")
    return jsonschema.Draft4Validator(json.loads(SCHEMA.read_text()))


def test_a_rule_says_what_the_control_is_and_how_to_look_again() -> None:
    found = run_of(data(check(Verdict.FAIL, "x", ProofVerdict.PROVEN)))
    rules = found["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["NET-01", "RUN"]
    assert [rules[result["ruleIndex"]]["id"] for result in found["results"]] == [
        result["ruleId"] for result in found["results"]
    ]
    text = rules[0]["help"]["text"]
    assert text.splitlines()[:2] == ["Only what is allowed passes", "Severity: critical."]
    assert "testbed check lab --only NET-01" in text
    assert "a breach" in text
    assert rules[0]["properties"]["security-severity"] == "9.5"


def test_a_result_keeps_its_fingerprint_when_words_lines_and_the_order_change() -> None:
    first = run_of(
        data(check(Verdict.FAIL, "red/web leaks"), check(Verdict.FAIL, "x", case="node-a")), topology()
    )
    moved = load("# a comment\n" + TEXT, "moved.yaml")
    later = data(
        check(Verdict.INCONCLUSIVE, "y", case="node-a"),
        check(Verdict.FAIL, "blue/web leaks"),
        started="2027-01-01T00:00:00+00:00",
    )
    second = run_of(later, moved)
    assert [result["partialFingerprints"] for result in first["results"]] == [
        result["partialFingerprints"] for result in reversed(second["results"])
    ]
    several = run_of(
        data(*(check(Verdict.FAIL, "x", ProofVerdict.CANNOT_FAIL, case=case) for case in ("fleet", "node-a")))
    )
    prints = [result["partialFingerprints"]["primaryLocationLineHash"] for result in several["results"]]
    assert len(set(prints)) == len(prints) == 4


def test_words_of_a_guest_are_bounded_and_inert() -> None:
    content = data(check(Verdict.FAIL, HOSTILE), trouble=(HOSTILE,))
    content["checks"][0]["objective"] = content["checks"][0]["case"] = HOSTILE
    written = sarif(content, topology(), version="1")
    assert written.isascii()
    assert "##" not in written
    assert "\\u001b" not in written
    assert "\\u202e" not in written
    (run,) = json.loads(written)["runs"]
    for result in run["results"]:
        text = result["message"]["text"]
        assert len(text) < 2200
        assert "[a link]" not in text.replace("\\[", "").replace("\\]", "")
        assert "{0}" not in text.replace("{{", "").replace("}}", "")
    assert "<script>" not in run["tool"]["driver"]["rules"][0]["help"]["markdown"]


def test_the_guests_that_a_reason_names_are_related_places() -> None:
    (result,) = run_of(
        data(check(Verdict.FAIL, "red/web -> blue/web, red/db, green/web, a/b/c")), topology()
    )["results"]
    assert [place["physicalLocation"]["region"]["startLine"] for place in result["relatedLocations"]] == [
        13,
        9,
    ]
    assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "tenants.red.guests.web"
