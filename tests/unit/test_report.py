"""Results: what is written can be read, what is not ours is refused, and every form tells the same."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from testbed.errors import UsageError
from testbed.report import formats
from testbed.report.result import CheckResult, Proof, ProofVerdict, Run, Verdict, from_json, to_json

HOSTILE = (
    "\x1b[2J::error::\n::error::x\n | a | b |\n<script>\x00 @somebody me@example.org https://example.org www.example.org #12 GH-12 a/b#3\n"
    "!4 ![x](http://x) [y](http://y) <http://z> `tick` ``two`` \\` ##vso[x] ```\n# head\n- [ ] item\n\u202e\ud800"
)


def _check(verdict: Verdict, *proofs: ProofVerdict, reason: str = "") -> CheckResult:
    made = tuple(Proof(kind, "a breach", "why", ("green",)) for kind in proofs)
    return CheckResult("NET-01", "fleet", "it | holds", "high", verdict, reason, False, 1.5, ("evidence/x.jsonl",), made)


def _data(*checks: CheckResult, trouble: tuple[str, ...] = ()) -> dict[str, Any]:
    return to_json(Run("lab", "ab12", {"outer": "tcg", "inner": "kvm"}, "2026-01-01T00:00:00+00:00", 9.5, checks, (), trouble))


def test_what_is_written_can_be_read_again() -> None:
    data = _data(_check(Verdict.PASS, ProofVerdict.PROVEN), _check(Verdict.FAIL, reason=HOSTILE), trouble=(HOSTILE,))
    assert to_json(from_json(json.loads(json.dumps(data)))) == data


@pytest.mark.parametrize(
    ("proofs", "worst"),
    [
        ((ProofVerdict.LEFT_OUT, ProofVerdict.PROVEN), "proven"),
        ((ProofVerdict.PROVEN, ProofVerdict.LEFT_OUT, ProofVerdict.CANNOT_FAIL), "cannot-fail"),
        ((ProofVerdict.LEFT_OUT, ProofVerdict.LEFT_OUT), "left-out"),
    ],
)
def test_a_check_is_as_good_as_the_worst_proof_that_was_asked_for(proofs: tuple[ProofVerdict, ...], worst: str) -> None:
    (check,) = _data(_check(Verdict.PASS, *proofs))["checks"]
    assert check["proof"]["verdict"] == worst


def _without(key: str) -> Any:
    return lambda data: data.pop(key)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.update(schema=2), "schema is 2"),
        (lambda data: data.update(schema=True), "schema is True"),
        (_without("lab"), "lab"),
        (_without("checks"), "checks"),
        (lambda data: data["checks"][0].update(verdict="fine"), "verdict"),
        (lambda data: data["checks"][0].update(duration_s="1"), "duration_s"),
        (lambda data: data["summary"].update({"pass": 7}), "its checks amount to"),
        (lambda data: data.update(proofs={"proven": 3}), "its checks amount to"),
        (lambda data: data.update(duration_s=float("nan")), "JSON"),
    ],
)
def test_what_is_not_ours_is_refused_with_the_reason(change: Any, told: str) -> None:
    data = _data(_check(Verdict.PASS))
    change(data)
    with pytest.raises(UsageError, match="not a usable result") as caught:
        from_json(data)
    assert told in caught.value.fact


@pytest.mark.parametrize("data", [None, [], "x", 3, {}])
def test_other_json_is_refused(data: object) -> None:
    with pytest.raises(UsageError, match="not a usable result"):
        from_json(data)


CASES = [
    ((_check(Verdict.PASS, ProofVerdict.PROVEN),), (), "ALL WALLS HOLD", set()),
    ((_check(Verdict.PASS, ProofVerdict.PROVEN, ProofVerdict.PROVEN_BEFORE),), (), "ALL WALLS HOLD", set()),
    ((_check(Verdict.FAIL, reason=HOSTILE),), (), "OPEN WALLS", {"failure"}),
    ((_check(Verdict.INCONCLUSIVE, reason=HOSTILE),), (), "INCONCLUSIVE", {"error"}),
    ((_check(Verdict.PASS), _check(Verdict.NOT_APPLICABLE, reason="no guest")), (), "ALL WALLS HOLD", {"skipped"}),
    ((_check(Verdict.PASS, ProofVerdict.CANNOT_FAIL),), (), "NOT ALL PROVEN", {"failure"}),
    ((_check(Verdict.PASS, ProofVerdict.DIRTY_REVERT),), (), "NOT ALL PROVEN", {"error"}),
    ((_check(Verdict.PASS),), (HOSTILE,), "INCONCLUSIVE", {"error"}),
    ((), (), "INCONCLUSIVE", {"error"}),
]


@pytest.mark.parametrize(("checks", "trouble", "word", "outcomes"), CASES)
def test_every_form_tells_the_same(checks: tuple[CheckResult, ...], trouble: tuple[str, ...], word: str, outcomes: set[str]) -> None:
    data = _data(*checks, trouble=trouble)
    assert formats.text(data).splitlines()[-1].startswith(word)
    markdown = formats.markdown(data)
    assert markdown.startswith(f"# lab: {word}")
    assert ("What is not a pass" in markdown) is bool({check.verdict for check in checks} - {Verdict.PASS} or trouble)
    root = ET.fromstring(formats.junit(data))
    assert {child.tag for child in root.findall("testsuite/testcase/*")} == outcomes
    suite = root[0]
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    assert all(int(suite.get(name, "")) == len(suite.findall(f"testcase/{tag}")) for name, tag in counted.items())
    assert int(suite.get("tests", "")) == len(suite.findall("testcase"))


@pytest.mark.parametrize("form", [formats.text, formats.markdown, formats.junit])
def test_what_a_guest_said_is_shown_and_obeyed_by_nobody(form: Any) -> None:
    shown = form(_data(_check(Verdict.FAIL, reason=HOSTILE), trouble=(HOSTILE,)))
    assert "\x1b" not in shown
    assert "\x00" not in shown
    assert "script" in shown
    assert not any(line.lstrip().startswith("::") for line in shown.splitlines())
    assert "##vso[" not in shown
    shown.encode()
    if form is formats.markdown:
        _require_inert(shown)
        table = [line for line in shown.splitlines() if line.startswith("|")]
        assert len(table) == 2 + 2 + 2 + 1


def _require_inert(shown: str) -> None:
    """Only code may hold what a forge makes links, calls or markup of."""
    tokens = [child for token in MarkdownIt("commonmark").enable("table").parse(shown) for child in token.children or [token]]
    assert not {token.type for token in tokens} & {"html_block", "html_inline", "link_open", "image", "fence", "code_block", "hr"}
    assert sum(token.type == "heading_open" for token in tokens) == shown.count("\n## ") + 1
    plain = " ".join(token.content for token in tokens if token.type == "text")
    assert not any(word in plain for word in ("@", "://", "www.", "#1", "GH-", "<", "!4"))


@pytest.mark.parametrize("place", ["id", "case", "objective", "severity", "duration_s", "reason"])
def test_markdown_is_inert_wherever_the_words_stand(place: str) -> None:
    data = _data(_check(Verdict.FAIL, ProofVerdict.CANNOT_FAIL, reason="-"))
    data["checks"][0][place] = HOSTILE
    data["checks"][0]["proofs"][0].update(breach=HOSTILE, reason=HOSTILE)
    data["lab"]["name"] = data["environment"]["note"] = data["started"] = HOSTILE
    _require_inert(formats.markdown(data))


@pytest.mark.parametrize("words", ["`", "``", "a`", "\\`x\\`", "`a` ``b`` ```c```"])
def test_ticks_do_not_end_the_code_around_foreign_words(words: str) -> None:
    shown = formats.markdown(_data(trouble=(f"{words} @somebody",)))
    _require_inert(shown)


def test_the_matrix_tells_what_got_through_and_what_is_wrong() -> None:
    def row(target: str, service: str, allowed: bool, observed: bool | None) -> dict[str, object]:
        protocol, _, port = service.partition("/")
        return {"source": "a", "target": target, "protocol": protocol, "port": port or None, "allowed": allowed, "observed": observed}

    rows = [row("b", "tcp/5432", True, True), row("b", "arp", True, False), row("c", "icmp", False, True), row("c", "nd", False, False),
            row("d", "nd", False, None)]  # fmt: skip
    lines = formats.matrix(rows).splitlines()
    assert lines[0].startswith("reach: 4 of 5 cells observed, 2 of them denied")
    assert lines[1:] == ["  a -> b: tcp/5432, arp (DEAD)", "  a -> c: icmp (LEAK)"]
    assert formats.matrix(rows[-1:]) == ""
