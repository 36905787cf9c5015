"""A plan in words and as JSON. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from testbed.plan.diff import Action, Plan, Verb
from testbed.untrusted.text import line

_SIGNS = {
    "create": "+",
    "update": "~",
    "replace": "±",
    "resume": ">",
    "restart": ">",
    "delete": "-",
    "blocked": "!",
}
_MARGIN = " " * 12


def text(plan: Plan) -> str:
    """Return a plan as lines: each action with its reason and losses, then counts by place."""
    if not plan:
        return "Nothing to do: the lab is what the topology says."
    lines = [shown for action in plan.actions for shown in _action(action)]
    places = _by_place(plan)
    width = max(map(len, places))
    lines += [f"{place:{width}}  {_counted(actions)}" for place, actions in places.items()]
    lines.append(f"{number(plan.actions)}: {_counted(plan.actions)}")
    if plan.destructive:
        lines.append("data is lost where a line says so: `testbed up` asks before it begins, or wants --yes")
    if plan.blocked:
        lines.append(
            "this cannot be done while the lab runs: run `testbed down` first; it destroys all data there"
        )
    return "\n".join(lines)


def _action(action: Action) -> list[str]:
    shown = [f"{_SIGNS[action.verb]} {action.verb:7} {line(action.key)}", f"{_MARGIN}{line(action.reason)}"]
    return [*shown, *(f"{_MARGIN}{item}" for item in (lost(action),) if item)]


def lost(action: Action) -> str:
    """Return the data that an action loses, with a mark before it; nothing if it loses none."""
    if action.verb is Verb.BLOCKED:
        return "! down first: this cannot be done while the lab runs"
    return f"! data lost: {line(', '.join(action.loses))}" if action.loses else ""


def _by_place(plan: Plan) -> dict[str, list[Action]]:
    found: dict[str, list[Action]] = {}
    for action in plan.actions:
        found.setdefault(action.key.place, []).append(action)
    return found


def number(actions: Sequence[Action]) -> str:
    """Return the number of actions in words."""
    return f"{len(actions)} action{'' if len(actions) == 1 else 's'}"


def _counted(actions: Sequence[Action]) -> str:
    counts = Counter(str(action.verb) for action in actions)
    return ", ".join(
        f"{count} {verb if verb == Verb.BLOCKED else f'to {verb}'}" for verb, count in counts.items()
    )


def data(plan: Plan) -> dict[str, object]:
    """Return a plan as JSON-able values."""
    return {
        "empty": not plan,
        "possible": not plan.blocked,
        "destroys": bool(plan.destructive),
        "places": {
            place: Counter(str(action.verb) for action in actions)
            for place, actions in _by_place(plan).items()
        },
        "actions": [
            {
                "verb": str(action.verb),
                "place": action.key.place,
                "kind": str(action.key.kind),
                "name": action.key.name,
                "reason": action.reason,
                "loses": list(action.loses),
            }
            for action in plan.actions
        ],
    }
