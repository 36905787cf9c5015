"""A plan in words and as JSON. Pure."""

from __future__ import annotations

from collections import Counter

from testbed.plan.diff import Plan
from testbed.untrusted.text import line

_SIGNS = {"create": "+", "update": "~", "replace": "±", "resume": ">", "restart": ">", "delete": "-"}


def text(plan: Plan) -> str:
    """Return a plan as lines: sign, resource, reason; then the counts."""
    if not plan:
        return "Nothing to do: the lab is what the topology says."
    lines = [
        f"{_SIGNS[action.verb]} {action.verb:7} {line(action.key)}\n            {line(action.reason)}"
        for action in plan.actions
    ]
    counts = Counter(str(action.verb) for action in plan.actions)
    lines.append(
        f"{len(plan.actions)} actions: " + ", ".join(f"{count} to {verb}" for verb, count in counts.items())
    )
    return "\n".join(lines)


def data(plan: Plan) -> dict[str, object]:
    """Return a plan as JSON-able values."""
    return {
        "empty": not plan,
        "actions": [
            {
                "verb": str(action.verb),
                "place": action.key.place,
                "kind": str(action.key.kind),
                "name": action.key.name,
                "reason": action.reason,
            }
            for action in plan.actions
        ],
    }
