"""The one canonical result of a run (schema 1), its JSON, and the exit code that follows from it. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter, ValidationError

from testbed.errors import Exit, TestbedError, UsageError

SCHEMA = 1


class Verdict(StrEnum):
    """What a check found."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not-applicable"


class ProofVerdict(StrEnum):
    """What running a check against its breach showed, from worst to best; or has shown, if nothing has
    changed since.

    What was not asked for comes last: it takes nothing from what was.
    """

    DIRTY_REVERT = "dirty-revert"
    CANNOT_FAIL = "cannot-fail"
    BROKEN_INSTRUMENT = "broken-instrument"
    BREACH_NOT_IN_FORCE = "breach-not-in-force"
    UNPROVEN = "unproven"
    PROVEN_BEFORE = "proven-before"
    PROVEN = "proven"
    LEFT_OUT = "left-out"


class Unseen(StrEnum):
    """Why a control was not looked at, or some of its cases were not."""

    NOT_ASKED = "not-asked"  # `--only` named others
    NOT_APPLICABLE = "not-applicable"  # this topology has nothing to look at
    LEFT_OUT = "left-out"  # it takes minutes, and was not asked for
    DID_NOT_RUN = "did-not-run"  # none of its checks ran, for whatever other reason


SOUND = frozenset(
    {ProofVerdict.PROVEN, ProofVerdict.PROVEN_BEFORE, ProofVerdict.LEFT_OUT}
)  # left out because somebody asked for it


@dataclass(frozen=True, slots=True)
class Proof:
    """One breach tried on one case of a check.

    Args:
        reason: what the check said while the breach was in force, or why there is no proof.
        steps: what happened, in order.

    """

    verdict: ProofVerdict
    breach: str
    reason: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One case of one check.

    Args:
        evidence: paths below the run's folder.
        proofs: one for each breach, if the run was to prove.
        left_out: it did not run because it takes minutes and was not asked for.

    """

    id: str
    case: str
    objective: str
    severity: str
    verdict: Verdict
    reason: str
    simulated: bool
    duration_s: float
    evidence: tuple[str, ...]
    proofs: tuple[Proof, ...] = ()
    left_out: bool = False

    @property
    def proof(self) -> Proof | None:
        """The worst proof, or None."""
        order = list(ProofVerdict)
        return min(self.proofs, key=lambda proof: order.index(proof.verdict), default=None)


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run.

    Args:
        started: ISO 8601, UTC.
        retried_starts: guests whose first start was dead, or that crashed while they were observed and were
            started again.
        trouble: what kept the run from being complete; it is then never a pass.
        controls: ids of all controls that there are; files of older versions have none.
        asked: control ids, or beginnings of them, that alone were asked for; empty if all were.

    """

    lab: str
    topology_digest: str
    environment: Mapping[str, str]
    started: str
    duration_s: float
    checks: tuple[CheckResult, ...]
    retried_starts: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


def not_looked_at(run: Run) -> list[dict[str, Any]]:
    """Return each control that no case looked at, or that some case would look at which was left out.

    Returns:
        By control: its id, how many of how many cases did not look, an `Unseen`, and the reasons in words.

    """
    found = []
    for control in sorted({*run.controls, *(check.id for check in run.checks)}):
        cases = [check for check in run.checks if check.id == control]
        unseen = [check for check in cases if check.verdict is Verdict.NOT_APPLICABLE]
        left_out = [check for check in unseen if check.left_out]
        told = unseen if len(unseen) == len(cases) else left_out
        if not cases:
            asked = not run.asked or any(control.upper().startswith(word.upper()) for word in run.asked)
            why = Unseen.DID_NOT_RUN if asked else Unseen.NOT_ASKED
            reason = "none of its checks ran" if asked else f"only {', '.join(run.asked)} was asked for"
        elif told:
            why = Unseen.LEFT_OUT if left_out else Unseen.NOT_APPLICABLE
            reason = "; ".join(dict.fromkeys(check.reason for check in told))
        else:
            continue
        found.append({"id": control, "cases": len(told), "of": len(cases), "why": why, "reason": reason})
    return found


def gaps(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the controls that were not looked at although they should have been; such a run is no pass.

    Where a topology has nothing to look at, and says why, or where others were asked for, nothing is amiss.

    Args:
        data: content of ``result.json``.

    """
    amiss = (Unseen.LEFT_OUT, Unseen.DID_NOT_RUN)
    whole = [item for item in data.get("not_looked_at", []) if item["cases"] == item["of"]]
    return [item for item in whole if item["why"] in amiss]


def to_json(run: Run) -> dict[str, Any]:
    """Return the content of ``result.json``, schema 1."""
    counts = Counter(check.verdict for check in run.checks)
    proofs = Counter(proof.verdict for check in run.checks for proof in check.proofs)
    data = {
        "schema": SCHEMA,
        "lab": {"name": run.lab, "topology_digest": run.topology_digest},
        "environment": dict(run.environment),
        "started": run.started,
        "duration_s": run.duration_s,
        "retried_starts": list(run.retried_starts),
        "trouble": list(run.trouble),
        "controls": list(run.controls),
        "asked": list(run.asked),
        "not_looked_at": not_looked_at(run),
        "summary": {verdict.replace("-", "_"): counts[verdict] for verdict in Verdict},
        "proofs": {verdict: proofs[verdict] for verdict in ProofVerdict if proofs[verdict]},
        "checks": [_check(check) for check in run.checks],
    }
    found: dict[str, Any] = json.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
    return found  # without halves of characters, which a guest may say and no reader of JSON takes


def _check(check: CheckResult) -> dict[str, Any]:
    worst = check.proof
    return {
        **asdict(check),
        "evidence": list(check.evidence),
        "proofs": [asdict(proof) for proof in check.proofs],
        "proof": None if worst is None else {"verdict": worst.verdict, "breach": worst.breach},
    }


def from_json(data: object) -> Run:
    """Return the run that the content of a ``result.json`` describes.

    Raises:
        UsageError: the content is not of this schema, or its counts do not follow from its checks.

    """
    if not isinstance(data, dict):
        raise _unusable(f"it holds {type(data).__name__} where a mapping belongs")
    if data.get("schema") != SCHEMA or isinstance(data["schema"], bool):
        raise _unusable(f"its schema is {data.get('schema')!r}, and this version reads schema {SCHEMA}")
    lab = data.get("lab")
    names = lab if isinstance(lab, dict) else {}
    flat = {**data, "lab": names.get("name"), "topology_digest": names.get("topology_digest")}
    try:
        run = TypeAdapter(Run).validate_json(json.dumps(flat, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _unusable(f"{place}: {first['msg']}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise _unusable(str(error)) from error
    again = to_json(run)
    for key in ("summary", "proofs", "not_looked_at"):
        older = key == "not_looked_at" and key not in data
        if not older and data.get(key) != again[key]:
            raise _unusable(f"its {key} is {data.get(key)!r}, and its checks amount to {again[key]!r}")
    return run


def content_of(text: str) -> dict[str, Any]:
    """Return what a run's ``result.json`` holds.

    Args:
        text: of that file.

    Raises:
        UsageError: it is not a usable result.

    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unusable(str(error)) from error
    return to_json(from_json(data))


def _unusable(fact: str) -> TestbedError:
    return UsageError(
        "this is not a usable result",
        fact=fact[:500],
        remedy="run `testbed check` again; it writes a new one",
    )


def exit_code(data: Mapping[str, Any]) -> Exit:
    """Return the exit code of a run: the worst that its verdicts, proofs and gaps stand for.

    Args:
        data: content of ``result.json``.

    """
    summary, proofs = data["summary"], data.get("proofs", {})
    if proofs.get(ProofVerdict.DIRTY_REVERT):
        return Exit.PROVISIONING
    if summary["fail"] or proofs.get(ProofVerdict.CANNOT_FAIL):
        return Exit.FAIL
    open_proofs = sum(count for verdict, count in proofs.items() if verdict not in SOUND)
    if summary["inconclusive"] or not summary["pass"] or open_proofs or data.get("trouble") or gaps(data):
        return Exit.INCONCLUSIVE
    return Exit.OK
