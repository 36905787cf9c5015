"""Results: written ones can be read, foreign ones are refused, and all formats agree."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from testbed.errors import Exit, UsageError
from testbed.report import formats, reach, screen
from testbed.report.result import (
    CheckResult,
    Proof,
    ProofVerdict,
    Run,
    Verdict,
    content_of,
    exit_code,
    from_json,
    to_json,
)

HOSTILE = (
    "\x1b[2J::error::\n::error::x\n | a | b |\n<script>\x00 @somebody me@example.org "
    "https://example.org www.example.org #12 GH-12 a/b#3\n"
    "!4 ![x](http://x) [y](http://y) <http://z> `tick` ``two`` \\` ##vso[x] ```\n# head\n- [ ] item\n"
    "\u202e\ud800"
)


def _check(verdict: Verdict, *proofs: ProofVerdict, reason: str = "") -> CheckResult:
    made = tuple(Proof(kind, "a breach", "why", ("green",)) for kind in proofs)
    return CheckResult(
        "NET-01", "fleet", "it | holds", "high", verdict, reason, False, 1.5, ("evidence/x.jsonl",), made
    )


def _data(*checks: CheckResult, trouble: tuple[str, ...] = ()) -> dict[str, Any]:
    return to_json(
        Run(
            "lab",
            "ab12",
            {"outer": "tcg", "inner": "kvm"},
            "2026-01-01T00:00:00+00:00",
            9.5,
            checks,
            (),
            trouble,
        )
    )


def test_what_is_written_can_be_read_again() -> None:
    data = _data(
        _check(Verdict.PASS, ProofVerdict.PROVEN), _check(Verdict.FAIL, reason=HOSTILE), trouble=(HOSTILE,)
    )
    assert to_json(from_json(json.loads(json.dumps(data)))) == data


@pytest.mark.parametrize(
    ("proofs", "worst"),
    [
        ((ProofVerdict.LEFT_OUT, ProofVerdict.PROVEN), "proven"),
        ((ProofVerdict.PROVEN, ProofVerdict.LEFT_OUT, ProofVerdict.CANNOT_FAIL), "cannot-fail"),
        ((ProofVerdict.LEFT_OUT, ProofVerdict.LEFT_OUT), "left-out"),
    ],
)
def test_a_check_is_as_good_as_the_worst_proof_that_was_asked_for(
    proofs: tuple[ProofVerdict, ...], worst: str
) -> None:
    (check,) = _data(_check(Verdict.PASS, *proofs))["checks"]
    assert check["proof"]["verdict"] == worst


def _of(control: str, verdict: Verdict, reason: str = "", *, left_out: bool = False) -> CheckResult:
    return CheckResult(
        control, "fleet", "it holds", "high", verdict, reason, False, 1.5, ("evidence/x.jsonl",), (), left_out
    )


PASSED, GONE = _of("NET-01", Verdict.PASS), _of("NET-12", Verdict.NOT_APPLICABLE, "no guest sends")
SLOW = _of("NET-01", Verdict.NOT_APPLICABLE, "it boots: ask for it with --slow", left_out=True)
ALL_SLOW = _of("NET-12", Verdict.NOT_APPLICABLE, "it boots: ask for it with --slow", left_out=True)
BOTH = ("NET-01", "NET-12")
# cases, all controls, controls asked for; exit code, first words, the rest of the headline, the line of names
SEEN = [
    (
        (PASSED, _of("NET-12", Verdict.PASS)),
        BOTH,
        (),
        Exit.OK,
        "ALL WALLS HOLD: 2 pass",
        "not-applicable",
        None,
    ),
    (
        (PASSED, GONE),
        BOTH,
        (),
        Exit.OK,
        "ALL WALLS LOOKED AT HOLD: 1 pass",
        "; not looked at: NET-12",
        "NET-12 (no guest sends)",
    ),
    (
        (PASSED, SLOW),
        BOTH[:1],
        (),
        Exit.OK,
        "ALL WALLS LOOKED AT HOLD: 1 pass",
        "not looked at: NET-01 in 1 of 2 cases",
        "(it boots: ask",
    ),
    (
        (PASSED, ALL_SLOW),
        BOTH,
        (),
        Exit.INCONCLUSIVE,
        "INCONCLUSIVE: 1 pass",
        "; not looked at: NET-12",
        "NET-12 (it boots: ask",
    ),
    (
        (PASSED, GONE, ALL_SLOW),
        BOTH,
        (),
        Exit.INCONCLUSIVE,
        "INCONCLUSIVE: 1 pass",
        "; not looked at: NET-12",
        "no guest sends; it boots",
    ),
    (
        (PASSED,),
        BOTH,
        (),
        Exit.INCONCLUSIVE,
        "INCONCLUSIVE: 1 pass",
        "; not looked at: NET-12",
        "NET-12 (none of its checks ran)",
    ),
    (
        (PASSED,),
        BOTH,
        ("net-01",),
        Exit.OK,
        "ALL WALLS LOOKED AT HOLD: 1 pass",
        "; only net-01 was asked for",
        None,
    ),
    (
        (PASSED, GONE),
        BOTH,
        ("NET",),
        Exit.OK,
        "ALL WALLS LOOKED AT HOLD: 1 pass",
        "NET-12; only NET was asked for",
        "NET-12",
    ),
    (
        (PASSED,),
        BOTH,
        ("NET",),
        Exit.INCONCLUSIVE,
        "INCONCLUSIVE: 1 pass",
        "NET-12; only NET was asked for",
        "none of its checks ran",
    ),
    (
        (GONE,),
        BOTH[1:],
        (),
        Exit.INCONCLUSIVE,
        "INCONCLUSIVE: 0 pass",
        "not looked at: NET-12",
        "NET-12 (no guest sends)",
    ),
    (
        (_of("NET-01", Verdict.FAIL), GONE),
        BOTH,
        (),
        Exit.FAIL,
        "OPEN WALLS: 0 pass",
        "not looked at: NET-12",
        "no guest sends",
    ),
    (
        (_of("NET-12", Verdict.INCONCLUSIVE), GONE, PASSED),
        BOTH,
        (),
        Exit.INCONCLUSIVE,
        "INCONCLUSIVE: 1 pass",
        "not-applicable",
        None,
    ),
    (
        (PASSED, GONE),
        (),
        (),
        Exit.OK,
        "ALL WALLS LOOKED AT HOLD: 1 pass",
        "not looked at: NET-12",
        "no guest sends",
    ),
]


@pytest.mark.parametrize(("checks", "controls", "asked", "code", "word", "end", "names"), SEEN)
def test_what_was_not_looked_at_is_said(
    checks: tuple[CheckResult, ...],
    controls: tuple[str, ...],
    asked: tuple[str, ...],
    code: Exit,
    word: str,
    end: str,
    names: str | None,
) -> None:
    data = to_json(Run("lab", "ab12", {}, "2026-01-01T00:00:00+00:00", 9.5, checks, (), (), controls, asked))
    assert to_json(from_json(json.loads(json.dumps(data)))) == data
    assert exit_code(data) is code
    *before, last = screen.text(data, 5000).splitlines()
    assert last.startswith(word)
    assert last.endswith(end)
    gone = [line for line in before if line.startswith("not looked at: ")]
    assert len(gone) == (names is not None)
    assert (names or "") in "".join(gone)
    markdown = formats.markdown(data)
    assert ("## What was not looked at" in markdown) is bool(data["not_looked_at"])
    suite = ET.fromstring(formats.junit(data))[0]
    told = {item.get("name"): item.get("value", "") for item in suite.findall("properties/property")}
    assert told["headline"] == last
    assert ("not looked at" in told) is bool(data["not_looked_at"])
    errors = [case for case in suite if case.find("error") is not None or case.find("failure") is not None]
    assert bool(errors) is (code is not Exit.OK)


def test_a_result_of_an_older_version_is_read() -> None:
    """It lacks the controls and those not looked at; the latter follow from its cases."""
    data = _data(_check(Verdict.PASS), GONE)
    for key in ("controls", "asked", "not_looked_at"):
        del data[key]
    for check in data["checks"]:
        del check["left_out"]
    read = content_of(json.dumps(data))
    assert [item["id"] for item in read["not_looked_at"]] == ["NET-12"]
    assert exit_code(read) is Exit.OK


def test_a_long_reason_and_a_hostile_one_stay_on_one_line() -> None:
    hostile = _of("NET-12", Verdict.NOT_APPLICABLE, HOSTILE + "x" * 4000)
    data = to_json(Run("lab", "ab12", {}, "now", 9.5, (PASSED, hostile), (), (), BOTH))
    *_, before, _, last = screen.text(data, 5000).splitlines()
    assert before.startswith("not looked at: NET-12 (")
    assert len(before) < 300
    assert last.startswith("ALL WALLS LOOKED AT HOLD")
    for form in (screen.text, formats.markdown, formats.junit):
        assert "\x1b" not in form(data)
        assert not any(line.startswith("::") for line in form(data).splitlines())


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
        (lambda data: data.update(controls=["NET-01", "NET-12"]), "its not_looked_at is"),
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
    (
        (_check(Verdict.PASS), _check(Verdict.NOT_APPLICABLE, reason="no guest")),
        (),
        "ALL WALLS HOLD",
        {"skipped"},
    ),
    ((_check(Verdict.PASS), GONE), (), "ALL WALLS LOOKED AT HOLD", {"skipped"}),
    ((_check(Verdict.PASS, ProofVerdict.CANNOT_FAIL),), (), "NOT ALL PROVEN", {"failure"}),
    ((_check(Verdict.PASS, ProofVerdict.DIRTY_REVERT),), (), "NOT ALL PROVEN", {"error"}),
    ((_check(Verdict.PASS),), (HOSTILE,), "INCONCLUSIVE", {"error"}),
    ((), (), "INCONCLUSIVE", {"error"}),
]


@pytest.mark.parametrize(("checks", "trouble", "word", "outcomes"), CASES)
def test_every_form_tells_the_same(
    checks: tuple[CheckResult, ...], trouble: tuple[str, ...], word: str, outcomes: set[str]
) -> None:
    data = _data(*checks, trouble=trouble)
    assert screen.text(data, 5000).splitlines()[-1].startswith(word)
    markdown = formats.markdown(data)
    assert markdown.startswith(f"# lab: {word}")
    assert ("What is not a pass" in markdown) is bool(
        {check.verdict for check in checks} - {Verdict.PASS} or trouble
    )
    root = ET.fromstring(formats.junit(data))
    assert {child.tag for child in root.findall("testsuite/testcase/*")} == outcomes
    suite = root[0]
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    assert all(
        int(suite.get(name, "")) == len(suite.findall(f"testcase/{tag}")) for name, tag in counted.items()
    )
    assert int(suite.get("tests", "")) == len(suite.findall("testcase"))


@pytest.mark.parametrize("form", [screen.text, formats.markdown, formats.junit])
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
    """Require that only code holds text that a forge turns into links, calls or markup."""
    tokens = [
        child
        for token in MarkdownIt("commonmark").enable("table").parse(shown)
        for child in token.children or [token]
    ]
    assert not {token.type for token in tokens} & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "fence",
        "code_block",
        "hr",
    }
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
        return {
            "source": "a",
            "target": target,
            "protocol": protocol,
            "port": port or None,
            "allowed": allowed,
            "observed": observed,
        }

    rows = [
        row("b", "tcp/5432", True, True),
        row("b", "arp", True, False),
        row("c", "icmp", False, True),
        row("c", "nd", False, False),
        row("d", "nd", False, None),
    ]
    lines = [line.plain for line in reach.matrices(rows)]
    assert lines[0].startswith("reach: 4 of 5 cells observed, 2 of them denied")
    assert lines[1:] == [
        "     2  3  4",
        "1 a  x  !  ?",
        "signs: ! a leak; x dead although allowed; ? not observed",
        "DEAD a -> b: arp",
        "LEAK a -> c: icmp",
    ]
    assert reach.matrices(rows[-1:]) == []


def test_a_run_cannot_be_changed_and_a_remedy_stays_short() -> None:
    assert Run.__dataclass_params__.frozen  # type: ignore[attr-defined]
    with pytest.raises(UsageError) as raised:
        from_json({"schema": "x" * 900})
    assert len(raised.value.fact) == 500
