"""Every form of a result but the canonical one: pure functions of ``result.json``'s content."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree as ET

_SIGN = {"pass": "PASS", "fail": "FAIL", "inconclusive": "????", "not-applicable": "n/a "}
_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: object) -> str:
    """Return text without what a terminal or an XML parser would trip over."""
    kept = _FORBIDDEN.sub("�", str(text))
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in kept)


def headline(data: Mapping[str, Any]) -> str:
    """Return the verdict of a whole run in one line."""
    summary = data["summary"]
    counts = ", ".join(f"{count} {name.replace('_', '-')}" for name, count in summary.items())
    proofs = ", ".join(f"{count} {name}" for name, count in data.get("proofs", {}).items())
    if summary["fail"]:
        word = "OPEN WALLS"
    elif summary["inconclusive"] or not summary["pass"] or data.get("trouble"):
        word = "INCONCLUSIVE"
    elif any(name != "proven" for name in data.get("proofs", {})):
        word = "NOT ALL PROVEN"
    else:
        word = "ALL WALLS HOLD"
    return f"{word}: {counts}" + (f"; breaches: {proofs}" if proofs else "")


def text(data: Mapping[str, Any]) -> str:
    """Return plain lines for terminals and CI logs."""
    environment = data["environment"]
    lines = [f"lab {data['lab']['name']}: nodes under {environment['outer']}, guests under {environment['inner']}"]
    for check in data["checks"]:
        lines.append(f"{_SIGN[check['verdict']]} {check['id']:7} {check['case']:12} {check['objective']} ({check['duration_s']} s)")
        if check["verdict"] != "pass":
            lines += [f"        {line}" for line in _clean(check["reason"]).splitlines()[:6]]
        lines += [f"        {p['verdict']}: {p['breach']}" + _unless_proven(p) for p in check["proofs"]]
    lines += [f"trouble: {_clean(item)}" for item in data.get("trouble", [])]
    return "\n".join((*lines, headline(data)))


def _unless_proven(proof: Mapping[str, Any]) -> str:
    return "" if proof["verdict"] == "proven" else f" ({_clean(proof['reason'])[:300]})"


def _cell(text: object) -> str:
    cleaned = _clean(text).replace("\n", " ").replace("\\", "\\\\")
    return re.sub(r"([|`*_<>\[\]])", r"\\\1", cleaned)


def markdown(data: Mapping[str, Any]) -> str:
    """Return a report in Markdown."""
    lines = [f"# {_cell(data['lab']['name'])}: {headline(data)}", ""]
    lines += [f"Started {data['started']}, took {data['duration_s']} s. Topology `{data['lab']['topology_digest'][:16]}`.", ""]
    lines += ["| environment | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in data["environment"].items()]
    lines += ["", "| verdict | check | case | severity | objective | breach proven |", "|---|---|---|---|---|---|"]
    for check in data["checks"]:
        proven = "; ".join(f"{proof['verdict']}: {proof['breach']}" for proof in check["proofs"]) or "not tried"
        cells = (check["verdict"], check["id"], check["case"], check["severity"], check["objective"], proven)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += list(_reasons(data))
    return "\n".join(lines) + "\n"


def _reasons(data: Mapping[str, Any]) -> Iterator[str]:
    told = [check for check in data["checks"] if check["verdict"] != "pass"]
    if told or data.get("trouble"):
        yield from ("", "## What is not a pass", "")
    for check in told:
        yield f"- **{check['id']} {_cell(check['case'])}**: {check['verdict']}: {_cell(check['reason'])}"
    for item in data.get("trouble", []):
        yield f"- {_cell(item)}"


def junit(data: Mapping[str, Any]) -> str:
    """Return JUnit XML: fail is a failure, inconclusive an error, not-applicable skipped."""
    summary = data["summary"]
    suite = ET.Element(
        "testsuite", name=f"testbed {data['lab']['name']}", tests=str(len(data["checks"])), failures=str(summary["fail"]),
        errors=str(summary["inconclusive"]), skipped=str(summary["not_applicable"]), time=str(data["duration_s"]),
        timestamp=str(data["started"]),
    )  # fmt: skip
    kinds = {"fail": "failure", "inconclusive": "error", "not-applicable": "skipped"}
    for check in data["checks"]:
        case = ET.SubElement(
            suite, "testcase", classname=check["id"], name=f"{check['case']}: {check['objective']}", time=str(check["duration_s"])
        )
        if check["verdict"] in kinds:
            entry = ET.SubElement(case, kinds[check["verdict"]], message=_clean(check["reason"])[:500])
            entry.text = _clean(check["reason"])
        for proof in check["proofs"]:
            if proof["verdict"] != "proven":
                entry = ET.SubElement(case, "error", message=f"{proof['verdict']}: {_clean(proof['breach'])}")
                entry.text = _clean(proof["reason"])
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
