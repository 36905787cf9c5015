"""Every form of a result but the canonical one: pure functions of ``result.json``'s content."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from testbed.report.result import SOUND, Unseen, gaps
from testbed.untrusted.text import barred
from testbed.untrusted.text import line as _line

_SIGN = {"pass": "PASS", "fail": "FAIL", "inconclusive": "????", "not-applicable": "n/a "}
_MANY = 200  # lines of one case in JUnit XML
_REASON = 150  # characters of the reason why a control was not looked at
_NOTHING = "no check passed, failed or was inconclusive: nothing is known about the walls"
_REFERENCE = re.compile(
    r"@|://|www\.|mailto:|[#!$%&~^]\w|\bGH-\d", re.IGNORECASE
)  # what a forge turns into a link or a call


def headline(data: Mapping[str, Any]) -> str:
    """Return the verdict of a whole run in one line, with the controls that it says nothing about."""
    summary = data["summary"]
    counts = ", ".join(f"{count} {name.replace('_', '-')}" for name, count in summary.items())
    proofs = ", ".join(f"{count} {name}" for name, count in data.get("proofs", {}).items())
    if summary["fail"]:
        word = "OPEN WALLS"
    elif summary["inconclusive"] or not summary["pass"] or data.get("trouble") or gaps(data):
        word = "INCONCLUSIVE"
    elif any(name not in SOUND for name in data.get("proofs", {})):
        word = "NOT ALL PROVEN"
    else:
        word = "ALL WALLS LOOKED AT HOLD" if data.get("not_looked_at") else "ALL WALLS HOLD"
    unseen = ", ".join(_part(item) for item in _unseen(data))
    asked = ", ".join(map(str, data.get("asked", [])))
    parts = {"breaches: {}": proofs, "not looked at: {}": unseen, "only {} was asked for": asked}
    return _line(
        "; ".join((f"{word}: {counts}", *(form.format(told) for form, told in parts.items() if told)))
    )


def _unseen(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the controls that were asked for and were not looked at, or in some cases not."""
    return [item for item in data.get("not_looked_at", []) if item["why"] != Unseen.NOT_ASKED]


def _part(item: Mapping[str, Any]) -> str:
    whole = item["cases"] == item["of"]
    return str(item["id"]) if whole else f"{item['id']} in {item['cases']} of {item['of']} cases"


def _because(item: Mapping[str, Any]) -> str:
    """Return a control that was not looked at with the reason, on one line that stays readable."""
    reason = _line(item["reason"])
    return f"{_part(item)} ({reason[:_REASON]}{'…' if len(reason) > _REASON else ''})"


def text(data: Mapping[str, Any]) -> str:
    """Return plain lines for terminals and CI logs.

    What a guest may have said stands behind a bar: see `testbed.untrusted.text`.
    """
    environment = data["environment"]
    levels = f"nodes under {environment.get('outer', '?')}, guests under {environment.get('inner', '?')}"
    lines = [_line(f"lab {data['lab']['name']}: {levels}")]
    for check in data["checks"]:
        told = (
            f"{_line(check['id']):7} {_line(check['case']):12} {_line(check['objective'])} "
            f"({_line(check['duration_s'])} s)"
        )
        lines.append(f"{_SIGN[check['verdict']]} {told}")
        if check["verdict"] != "pass":
            lines += [f"      {line}" for line in barred(check["reason"], 6)]
        lines += [
            f"        {_line(proof['verdict'])}: {_line(proof['breach'])}" + _unless_proven(proof)
            for proof in check["proofs"]
        ]
    lines += [f"trouble: {_line(item)}" for item in data.get("trouble", [])]
    unseen = _unseen(data)
    if unseen:
        lines.append(_line(f"not looked at: {'; '.join(map(_because, unseen))}"))
    return "\n".join((*lines, headline(data)))


def matrix(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the reach matrices in words: what reached what, and how much did not; what was against the rules
    stands out.

    Nothing where nothing was observed.
    """
    seen = [row for row in rows if row["observed"] is not None]
    if not seen:
        return ""
    pairs: dict[str, list[str]] = {}
    for row in seen:
        if row["observed"] or row["allowed"]:
            sign = "" if row["observed"] == row["allowed"] else " (LEAK)" if row["observed"] else " (DEAD)"
            service = row["protocol"] if row["port"] is None else f"{row['protocol']}/{row['port']}"
            pairs.setdefault(_line(f"{row['source']} -> {row['target']}"), []).append(f"{service}{sign}")
    denied = sum(not row["observed"] for row in seen)
    lines = [f"  {pair}: {', '.join(services)}" for pair, services in pairs.items()]
    return "\n".join(
        (
            f"reach: {len(seen)} of {len(rows)} cells observed, {denied} of them denied; what got through:",
            *lines,
        )
    )


def _unless_proven(proof: Mapping[str, Any]) -> str:
    return "" if proof["verdict"] == "proven" else f" ({_line(proof['reason'])[:300]})"


def _cell(text: object) -> str:
    """Return our own words for Markdown; what a forge might make a link of is shown as code."""
    shown = _line(text)
    return _code(shown) if _REFERENCE.search(shown) else re.sub(r"([\\|`*_~<>&\[\]])", r"\\\1", shown)


def _code(text: object) -> str:
    """Return foreign words as Markdown's code, in which nothing is a link, a mention, an issue, a tag or a
    picture.
    """
    shown = _line(text).replace(
        "|", "\u2502"
    )  # would end a cell of a table, and cannot be escaped outside of one
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if shown else ""


def markdown(data: Mapping[str, Any]) -> str:
    """Return a report in Markdown."""
    lines = [f"# {_cell(data['lab']['name'])}: {_cell(headline(data))}", ""]
    digest = re.sub("[^0-9a-z]", "", str(data["lab"]["topology_digest"]))[:16]
    lines += [
        f"Started {_cell(data['started'])}, took {_cell(data['duration_s'])} s. Topology `{digest}`.",
        "",
    ]
    lines += ["| environment | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in data["environment"].items()]
    lines += [
        "",
        "| verdict | check | case | severity | objective | breach proven |",
        "|---|---|---|---|---|---|",
    ]
    for check in data["checks"]:
        proven = (
            "; ".join(f"{proof['verdict']}: {proof['breach']}" for proof in check["proofs"]) or "not tried"
        )
        cells = (check["verdict"], check["id"], check["case"], check["severity"], check["objective"], proven)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += list(_reasons(data))
    return "\n".join(lines) + "\n"


def _reasons(data: Mapping[str, Any]) -> Iterator[str]:
    unseen = data.get("not_looked_at", [])
    if unseen:
        yield from ("", "## What was not looked at", "")
    for item in unseen:
        yield f"- **{_cell(_part(item))}**: {_cell(item['why'])}: {_cell(item['reason'])}"
    told = [check for check in data["checks"] if check["verdict"] != "pass"]
    if told or data.get("trouble"):
        yield from ("", "## What is not a pass", "")
    for check in told:
        yield (
            f"- **{_cell(check['id'])} {_cell(check['case'])}**: {_cell(check['verdict'])}: "
            f"{_code(check['reason'])}"
        )
    for item in data.get("trouble", []):
        yield f"- {_code(item)}"
    doubts = [
        (check, proof)
        for check in data["checks"]
        for proof in check["proofs"]
        if proof["verdict"] not in SOUND
    ]
    if doubts:
        yield from ("", "## What is not proven", "")
    for check, proof in doubts:
        place = f"**{_cell(check['id'])} {_cell(check['case'])}**, {_cell(proof['breach'])}"
        yield f"- {place}: {_cell(proof['verdict'])}: {_code(proof['reason'])}"


def junit(data: Mapping[str, Any]) -> str:
    """Return JUnit XML: fail is a failure, inconclusive an error, not-applicable skipped.

    A case has at most one outcome. What makes the exit code of a run differ from 0 shows here too: a check
    that cannot fail is a failure, any other proof that did not succeed an error, and so is trouble of the run
    itself.
    """
    suite = ET.Element(
        "testsuite",
        name=_line(f"testbed {data['lab']['name']}"),
        time=_line(data["duration_s"]),
        timestamp=_line(data["started"]),
    )
    unseen = [("not looked at", _because(item)) for item in data.get("not_looked_at", [])]
    told = ET.SubElement(suite, "properties")
    for name, value in (("headline", headline(data)), *unseen):
        ET.SubElement(told, "property", name=name, value=_line(value))
    for check in data["checks"]:
        name = _line(f"{check['case']}: {check['objective']}")
        case = ET.SubElement(
            suite, "testcase", classname=_line(check["id"]), name=name, time=_line(check["duration_s"])
        )
        _outcome(case, check)
    summary = data["summary"]
    observed = summary["pass"] or summary["fail"] or summary["inconclusive"]
    gone = [f"{item['id']} was not looked at: {item['reason']}" for item in gaps(data)]
    for item in [*data.get("trouble", []), *gone] or ([] if observed else [_NOTHING]):
        case = ET.SubElement(suite, "testcase", classname="run", name=_line(item)[:200], time="0")
        ET.SubElement(case, "error", message=_line(item)[:500]).text = _lines(item)
    suite.set("tests", str(len(suite.findall("testcase"))))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _outcome(case: ET.Element, check: Mapping[str, Any]) -> None:
    """Add what JUnit calls the outcome of a case; a pass has none."""
    kinds = {"fail": "failure", "inconclusive": "error", "not-applicable": "skipped"}
    proofs = [proof for proof in check["proofs"] if proof["verdict"] not in SOUND]
    told = [f"{proof['verdict']}: {proof['breach']}: {proof['reason']}" for proof in proofs]
    if check["verdict"] in kinds:
        kind, told = kinds[check["verdict"]], [check["reason"], *told]
    elif any(proof["verdict"] == "cannot-fail" for proof in proofs):
        kind = "failure"
    elif proofs:
        kind = "error"
    else:
        return
    ET.SubElement(case, kind, message=_line(told[0])[:500]).text = _lines("\n".join(told))


def _lines(text: str) -> str:
    """Return text in which no line can be taken for one of ours, or for a command: each stands behind a
    bar.
    """
    return "\n".join(barred(text, _MANY))
