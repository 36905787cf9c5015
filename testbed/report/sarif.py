"""A result as SARIF 2.1.0 (OASIS), for code scanning. Pure.

Everything that keeps the exit code from being 0 is one result.
The specification's section 3.11 gives brackets and braces in messages a meaning, so foreign ones are escaped.
Code scanning takes every result for an alert, whatever its kind; passes are therefore left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from testbed.errors import Exit
from testbed.report.formats import headline
from testbed.report.result import SOUND, exit_code, gaps
from testbed.topology_file.loader import ParsedFile
from testbed.topology_file.validation import CONTROLLER
from testbed.topology_file.yaml_source import Path, dotted
from testbed.untrusted.text import clean, line

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RUN = "RUN"  # the rule for what concerns no single control
_OBJECTIVE = "The run looked at all that it was asked to look at"
_REASON = 2000  # characters of a message; code scanning shows a thousand
_RELATED = 10  # places beside the first one
_GUEST = re.compile(r"(?<![\w./-])([a-z][a-z0-9-]*)/([a-z][a-z0-9-]*)(?![\w/])")
_SCORES = {
    "critical": "9.5",
    "high": "8.0",
    "medium": "5.5",
    "low": "3.0",
}  # CVSS bands, which code scanning sorts by
_ERRORS = ("fail", "cannot-fail", "dirty-revert")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def sarif(data: Mapping[str, Any], topology: ParsedFile | None = None, *, version: str) -> str:
    """Return a result as SARIF 2.1.0.

    Args:
        data: content of ``result.json``.
        topology: the file that the result is about; its `file` becomes the location, as it is if it is a URI.
            Without it, no result has a location.
        version: of the tool.

    """
    rules = _rules(data)
    places = list(rules)
    driver = {
        "name": "testbed",
        "fullName": f"testbed {version}",
        "version": version,
        "rules": [_rule(name, rules[name], data["lab"]["name"]) for name in places],
    }
    results = [
        {
            "ruleId": rule,
            "ruleIndex": places.index(rule),
            "level": "error" if verdict in _ERRORS else "warning",
            "message": {"text": _message(words)},
            "partialFingerprints": _fingerprints(data, rule, subject),
            "properties": {"verdict": verdict, "case": subject[0] if subject else ""},
            **_locations(topology, subject[0] if subject else "", words),
        }
        for rule, verdict, subject, words in _findings(data)
    ]
    code, started = exit_code(data), _utc(data["started"])
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"testbed/{line(data['lab']['name'])}/"},
        "invocations": [
            {
                "executionSuccessful": code in (Exit.OK, Exit.FAIL),
                "exitCode": int(code),
                **({"startTimeUtc": started} if started else {}),
            }
        ],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "headline": headline(data),
            "topologyDigest": line(data["lab"]["topology_digest"]),
            "environment": {line(name): line(value) for name, value in data["environment"].items()},
        },
        "results": results,
    }
    return (
        json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1).replace("##", "\\u0023#")
        + "\n"
    )


def _utc(started: object) -> str:
    """Return a time as SARIF writes it (3.9), or nothing if it is none."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)(?:\+00:00|Z)", str(started))
    return f"{found[1]}Z" if found else ""


Finding = tuple[str, str, tuple[str, ...], str]  # rule, verdict, case and breach if any, words


def _findings(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield all that keeps the exit code of a run from being 0."""
    for check in data["checks"]:
        rule, case = line(check["id"]), line(check["case"])
        if check["verdict"] in ("fail", "inconclusive"):
            said = "" if check["verdict"] == "fail" else "inconclusive: "
            yield rule, check["verdict"], (case,), f"{said}{check['objective']}: {check['reason']}"
        for proof in check["proofs"]:
            if proof["verdict"] not in SOUND:
                words = f"{proof['verdict']}: {proof['breach']}: {proof['reason']}"
                yield rule, proof["verdict"], (case, line(proof["breach"])), words
    for item in gaps(data):
        yield line(item["id"]), str(item["why"]), (), f"{item['id']} was not looked at: {item['reason']}"
    summary, trouble = data["summary"], data.get("trouble", [])
    if trouble:
        yield RUN, "inconclusive", (), "; ".join(map(str, trouble))
    elif not (summary["pass"] or summary["fail"] or summary["inconclusive"]):
        yield RUN, "inconclusive", (), "no check passed, failed or was inconclusive"


def _rules(data: Mapping[str, Any]) -> dict[str, dict[str, dict[str, None]]]:
    """Return by rule id, in order, the objectives, severities and breaches of its checks."""
    rules: dict[str, dict[str, dict[str, None]]] = {}

    def of(name: str) -> dict[str, dict[str, None]]:
        return rules.setdefault(name, {"objectives": {}, "severities": {}, "breaches": {}})

    for check in data["checks"]:
        rule = of(line(check["id"]))
        rule["objectives"][line(check["objective"])] = None
        rule["severities"][line(check["severity"])] = None
        rule["breaches"].update(dict.fromkeys(line(proof["breach"]) for proof in check["proofs"]))
    for item in gaps(data):
        of(line(item["id"]))
    of(RUN)["objectives"][_OBJECTIVE] = None
    return rules


def _rule(name: str, rule: Mapping[str, Mapping[str, None]], lab: object) -> dict[str, Any]:
    objectives = list(rule["objectives"]) or [f"The control {name} holds"]
    severity = next((word for word in _SCORES if word in rule["severities"]), "")
    command = f"testbed check {line(lab)}" + ("" if name == RUN else f" --only {name}")
    parts = [
        *objectives,
        *([f"Severity: {severity}."] if severity else []),
        f"To look again, run: {command}",
        *([] if name == RUN else [f"To see that the check can fail, run: {command} --prove"]),
        *(f"Breach that turns it red: {breach}." for breach in rule["breaches"]),
    ]
    score = {"security-severity": _SCORES[severity]} if severity else {}
    return {
        "id": name,
        "shortDescription": {"text": _message(objectives[0])},
        "fullDescription": {"text": _message(". ".join(objectives))},
        "help": {
            "text": "\n".join(map(_message, parts)),
            "markdown": "\n\n".join(_braces(_PUNCTUATION.sub(r"\\\1", part)) for part in parts),
        },
        "defaultConfiguration": {"level": "warning" if name == RUN else "error"},
        "properties": {"tags": ["security", "isolation"], **score},
    }


def _message(words: object) -> str:
    """Return words as the text of a SARIF message, without links (3.11.5, 3.11.6)."""
    kept = clean(words, _REASON).strip()
    return _braces(re.sub(r"([\\\[\]])", r"\\\1", kept))


def _braces(words: str) -> str:
    return words.replace("{", "{{").replace("}", "}}")


def _fingerprints(data: Mapping[str, Any], rule: str, subject: tuple[str, ...]) -> dict[str, str]:
    """Return the fingerprints of a result: they stay when its words or its line change.

    Code scanning reads only the one that has CodeQL's name.
    """
    digest = hashlib.sha256(json.dumps([data["lab"]["name"], rule, *subject]).encode()).hexdigest()[:32]
    return {"primaryLocationLineHash": f"{digest[:16]}:1", "testbedCase/v1": digest}


def _locations(topology: ParsedFile | None, case: str, words: str) -> dict[str, Any]:
    """Return the lines of the machine, of the guests that the words name, or else of the lab."""
    if topology is None:
        return {}
    first, *others = _paths(topology, case, words)
    related = [{**_location(topology, path), "id": number} for number, path in enumerate(others, 1)]
    return {"locations": [_location(topology, first)], **({"relatedLocations": related} if related else {})}


def _paths(topology: ParsedFile, case: str, words: str) -> list[Path]:
    spec = topology.spec
    found: dict[Path, None] = {}
    if case in spec.nodes:
        found["nodes", case] = None
    elif case == CONTROLLER and topology.document.line(("controller",)) > 1:
        found["controller",] = None
    for tenant, guest in _GUEST.findall(words[:_REASON]):
        if tenant in spec.tenants and guest in spec.tenants[tenant].guests:
            found["tenants", tenant, "guests", guest] = None
    return list(found)[: 1 + _RELATED] or [("name",)]


def _location(topology: ParsedFile, path: Path) -> dict[str, Any]:
    whole = topology.file.startswith("file://")
    place = {"uri": topology.file} if whole else {"uri": quote(topology.file), "uriBaseId": "%SRCROOT%"}
    return {
        "physicalLocation": {
            "artifactLocation": place,
            "region": {"startLine": topology.document.line(path)},
        },
        "logicalLocations": [{"fullyQualifiedName": dotted(path), "kind": "resource"}],
        "message": {"text": _message(dotted(path))},
    }
