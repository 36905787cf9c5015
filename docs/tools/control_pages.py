"""Writes the reference page of controls from the declarations in checks/ and from docs/controls.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby

from docs.tools.catalogue import PAGE, ROOT, Control, clauses, controls
from testbed.verify.check import ATTRIBUTE, Breach, Declaration, Effect
from testbed.verify.inventory import Found, inventory

_EFFECTS = {
    Effect.OBSERVES: "only reads",
    Effect.PROBES: "sends traffic or tries an access; changes nothing",
    Effect.UNDECLARED: "not declared",
    Effect.DISTURBS: "changes something and puts it back",
    Effect.FLOODS: "uses up a shared resource for a while",
    Effect.RESTARTS: "restarts services",
    Effect.REBOOTS: "reboots machines",
}
_ALWAYS = Breach.__dataclass_fields__["applies"].default


@dataclass(frozen=True, slots=True)
class Check:
    """A check as the inventory finds it, with its declaration and the first line of its file."""

    found: Found
    declared: Declaration
    stand: str


def checks() -> list[Check]:
    """Return every check of the folder checks/, ordered by control, file and place in the file.

    Raises:
        ValueError: the inventory reports that a declaration cannot be read.

    """
    seen = inventory(ROOT / "checks")
    if seen.oddities:
        raise ValueError("; ".join(seen.oddities))
    found = []
    for item in seen.checks:
        module = import_module("checks." + item.file.removesuffix(".py").replace("/", "."))
        stand = (inspect.getdoc(module) or "").partition("\n\n")[0]
        found.append(Check(item, getattr(getattr(module, item.function), ATTRIBUTE), " ".join(stand.split())))
    return sorted(found, key=lambda check: check.declared.id)


def page() -> str:
    """Return the page as Markdown.

    Raises:
        ValueError: a check belongs to a control that docs/controls.md does not explain.

    """
    text = PAGE.read_text()
    known, claims, every = controls(text), clauses(text), checks()
    breaches = sum(len(check.declared.breaches) for check in every)
    ids = {check.declared.id for check in every}
    if lost := sorted(name for name in ids if name not in known or not known[name].observation):
        msg = f"docs/controls.md has no threat and observation for {', '.join(lost)}"
        raise ValueError(msg)
    lines = [
        "# Controls, checks and breaches",
        "",
        f"{len(ids)} controls have {len(every)} checks with {breaches} breaches.",
        "Threats, observations and clauses come from [../controls.md](../controls.md),",
        "all else from the declarations in `checks/`.",
        "",
        "| control | severity | checks | breaches | clauses |",
        "|---|---|---|---|---|",
    ]
    groups = [(name, list(items)) for name, items in groupby(every, key=lambda check: check.declared.id)]
    for name, items in groups:
        total = sum(len(check.declared.breaches) for check in items)
        severity, own = items[0].declared.severity, ", ".join(known[name].clauses)
        lines.append(f"| [{name}](#{name.lower()}) | {severity} | {len(items)} | {total} | {own} |")
    for name, items in groups:
        lines += ["", *_section(known[name], claims, items)]
    return "\n".join(lines) + "\n"


def _section(control: Control, claims: dict[str, str], items: list[Check]) -> Iterator[str]:
    yield from (f"## {control.id}", "", "| | |", "|---|---|", f"| threat | {control.threat} |")
    yield f"| observation | {control.observation} |"
    for name in control.clauses:
        yield f"| clause {name} | {claims[name]} |"
    for check in items:
        yield from ("", f"**{check.declared.objective}**", "")
        yield f"- file: `checks/{check.found.file}`, `{check.found.function}`"
        yield f"- attacked from: {check.stand}"
        yield f"- effect: {_EFFECTS[check.declared.effect]}"
        yield f"- cases: {_cases(check)}"
        if check.declared.slow:
            yield f"- runs only with `--slow`: {check.declared.slow}"
        if check.declared.unproven:
            yield f"- unproven: {check.declared.unproven}"
        for breach in check.declared.breaches:
            limited = "" if breach.applies is _ALWAYS else " (not in every topology)"
            yield f"- breach: {breach.name}{limited}"


def _cases(check: Check) -> str:
    per = next((name for name in ("node", "machine") if name in check.found.fixtures), "")
    return {"node": "one for each node", "machine": "one for each machine"}.get(per, "one for the fleet")
