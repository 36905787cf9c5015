"""Cases run in the order of their effect: evidence comes before changes.

Declared effects are those of the code.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.verify.check import ATTRIBUTE, Effect
from testbed.verify.inventory import inventory
from testbed.verify.runner.plugin import run_checks
from tests.fake_checks import declare, fake_fleet

ROOT = Path(__file__).parents[4]
CHECKS = ROOT / "checks"
SEEN = "import sys\nSEEN = sys.modules.setdefault('what_was_seen', [])\n"
# Worst first in the file, so that the order of the file would be the wrong one.
EFFECTS = ("REBOOTS", "RESTARTS", "FLOODS", "DISTURBS", "UNDECLARED", "PROBES", "OBSERVES")


def _body(*, local: bool) -> str:
    fixtures = "fleet, machine" if local else "fleet"
    return SEEN + "".join(
        declare(f"breaches=(BREACH,), effect=Effect.{name}, local={local}", name)
        + (
            f"def test_{name.lower()}({fixtures}):\n    SEEN.append('{name}')\n    assert not look(fleet), "
            "'open'\n"
        )
        for name in EFFECTS
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setitem(sys.modules, "what_was_seen", found)
    return found


@pytest.mark.parametrize("local", [False, True])
def test_what_disturbs_least_runs_first(judge: Any, seen: list[str], local: bool) -> None:
    """No case begins before all with a smaller effect have ended on every machine.

    So it is with local ones, which run side by side.
    """
    plugin = judge(_body(local=local))
    order = [Effect[name] for name in seen]
    assert order == sorted(order)
    assert set(order) == set(Effect)
    assert [result.objective for result in plugin.results][:: 2 if local else 1] == list(
        EFFECTS
    )  # reported in the file's order
    assert plugin.errors == []


def test_proofs_keep_the_order_too(judge: Any, seen: list[str]) -> None:
    """First all walls as they are, then each one opened, then all closed again."""
    judge(_body(local=False), prove=True)
    wanted = list(reversed(EFFECTS))
    assert seen == wanted * 3


def test_local_and_other_checks_of_one_effect_stay_together(judge: Any, seen: list[str]) -> None:
    body = SEEN
    for name, effect, local in (
        ("a", "RESTARTS", True),
        ("b", "PROBES", False),
        ("c", "OBSERVES", False),
        ("d", "PROBES", True),
    ):
        fixtures = "fleet, machine" if local else "fleet"
        body += declare(f"breaches=(BREACH,), effect=Effect.{effect}, local={local}", name)
        body += f"def test_{name}({fixtures}):\n    SEEN.append('{name}')\n    look(fleet)\n"
    judge(body)
    assert "".join(seen) == "cddbaa"


def test_what_was_observed_before_a_disturbance_is_forgotten(judge: Any) -> None:
    quiet = judge(_body(local=False).partition("\n@check")[0] + _only("OBSERVES") + _only("PROBES"))
    assert quiet.fleet.phases == 0
    assert judge(SEEN + _only("FLOODS") + _only("PROBES")).fleet.phases == 1


def _only(name: str) -> str:
    return (
        declare(f"breaches=(BREACH,), effect=Effect.{name}", name)
        + f"def test_{name.lower()}(fleet): look(fleet)\n"
    )


class Code:
    """The functions, classes and constants of checks and their helpers, with syntax trees."""

    def __init__(self) -> None:
        self.bodies: dict[tuple[str, str], list[ast.AST]] = {}
        self.names: dict[tuple[str, str], tuple[str, str]] = {}
        for path in [*CHECKS.rglob("*.py"), *(ROOT / "testbed/verify").rglob("*.py")]:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                self._add(module, node)

    def _add(self, module: str, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.bodies[module, node.name] = list(node.body)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in [item.id for item in ast.walk(target) if isinstance(item, ast.Name)]:
                    self.bodies[module, name] = [node.value]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                self.names[module, alias.asname or alias.name] = (node.module, alias.name)

    def reached(self, module: str, function: str) -> Iterator[ast.AST]:
        """Yield all code that a function may reach."""
        waiting, known = [(module, function)], set()
        while waiting:
            place = waiting.pop()
            if place in known or place not in self.bodies:
                continue
            known.add(place)
            for body in self.bodies[place]:
                for node in ast.walk(body):
                    yield node
                    waiting += self._used(place[0], node)

    def _used(self, module: str, node: ast.AST) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Name):
            yield self.names.get((module, node.id), (module, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(
            node.value, ast.Name
        ):  # of a module, as in paths.arrivals
            package, name = self.names.get((module, node.value.id), ("", ""))
            yield f"{package}.{name}", node.attr


_CALLED = {  # what changes a lab, by the name of the method or function
    Effect.DISTURBS: {
        "converge",
        "converge_place",
        "change_rules",
        "set_port",
        "delete_port",
        "set_security",
        "set_addresses",
        "set_limits",
        "set_option",
        "create",
        "destroy",
        "reset",
        "attach",
    },
    Effect.FLOODS: {"flood"},
}
_SAID = {  # parts of commands that change a machine
    Effect.DISTURBS: (
        '"op": "mutate"',
        '"op": "update"',
        "add-flow",
        "del-flows",
        "apparmor_parser",
        "nft add",
        "nft insert",
    ),
    Effect.RESTARTS: ("systemctl restart", "systemctl stop", "systemctl start"),
    Effect.REBOOTS: ("systemctl reboot",),
}


def _does(code: Code, module: str, function: str) -> Effect:
    found = {Effect.OBSERVES}
    for node in code.reached(module, function):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            module_of = getattr(getattr(node.func, "value", None), "id", "")
            for effect, names in _CALLED.items():
                if name in names and (effect is not Effect.FLOODS or module_of == "flooding"):
                    found.add(effect)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {effect for effect, texts in _SAID.items() if any(text in node.value for text in texts)}
    return max(found)


def _declared() -> dict[str, tuple[str, Effect]]:
    """Return module and effect of each real check, by its function."""
    sys.path.insert(0, str(ROOT))
    try:
        modules = [
            importlib.import_module(f"checks.{path.stem}") for path in sorted(CHECKS.glob("test_*.py"))
        ]
    finally:
        sys.path.remove(str(ROOT))
    return {
        name: (module.__name__, getattr(value, ATTRIBUTE).effect)
        for module in modules
        for name, value in vars(module).items()
        if hasattr(value, ATTRIBUTE)
    }


def test_every_real_check_declares_its_effect() -> None:
    found = _declared()
    assert len(found) == len(inventory(CHECKS).checks) > 25
    assert [name for name, (_, effect) in found.items() if effect is Effect.UNDECLARED] == []


def test_every_check_whose_code_changes_the_world_says_so() -> None:
    """The declared effect is at least that of the calls and commands in its code.

    Calls of helpers are followed.
    """
    code = Code()
    does = {name: _does(code, module, name) for name, (module, _) in _declared().items()}
    assert {name for name, effect in does.items() if effect is Effect.REBOOTS} == {
        "test_walls_hold_without_the_controller",
        "test_walls_hold_without_a_node",
    }
    assert does["test_walls_hold_while_the_switch_restarts"] is Effect.RESTARTS
    assert does["test_a_flood_stays_within_its_limits"] is Effect.FLOODS
    assert does["test_connections_end_with_their_rule"] is Effect.DISTURBS
    assert does["test_no_page_is_shared"] is Effect.OBSERVES
    wrong = {
        name: (effect.name, does[name].name)
        for name, (_, effect) in _declared().items()
        if effect < does[name]
    }
    assert wrong == {}


def test_in_the_real_order_the_tables_are_walked_before_the_switch_starts_anew(tmp_path: Path) -> None:
    told: list[str] = []
    topology = ROOT / "topologies/two-tenants.yaml"
    fleet: Any = fake_fleet(tmp_path, topology)
    run_checks(fleet, CHECKS, prove=None, only=(), progress=told.append, slow=True)
    started = [
        line.partition(": ")[2] for line in told if not line.endswith((": inconclusive", ": not-applicable"))
    ]
    order = {objective: place for place, objective in enumerate(started)}
    effects = {
        getattr(value, ATTRIBUTE).objective: getattr(value, ATTRIBUTE).effect for value in _functions()
    }
    ran = [effects[objective] for objective in order if objective in effects]
    assert ran == sorted(ran)
    assert len(ran) > 25
    walk = (
        "No packet at all finds a way that the topology does not declare, through the tables of all switches"
    )
    assert order[walk] < order["The walls of the virtual switch hold while its parts restart"]


def _functions() -> Iterator[Any]:
    for name, (module, _) in _declared().items():
        yield getattr(sys.modules[module], name)
