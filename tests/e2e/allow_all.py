"""Open a wall of every check of the network at once, run all checks, and revert everything.

Call it as ``python allow_all.py LAB``. It prints the result as ``testbed check --json`` does. A check that
passes here would pass anywhere.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from testbed import data_files
from testbed.cli.output.terminal import out, say
from testbed.drivers.host.workspace import Workspace, state_root
from testbed.lab import build_inputs
from testbed.lab import session as labs
from testbed.lab.session import Lab
from testbed.report.result import content_of
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import ATTRIBUTE, Breach, Declaration
from testbed.verify.inventory import members
from testbed.verify.runner import run
from testbed.verify.runner.proof_cache import Proving

# clients that still use TLS would wait for such a database, and no other breach could be opened
_ALONE = "in the clear"


def cases(lab: Lab) -> Iterator[tuple[Declaration, BreachContext]]:
    """Yield each case of each check of the network that this lab has and that is not slow."""
    sys.path.insert(0, str(data_files.checks().parent))
    for file in sorted(data_files.checks().glob("test_*.py")):
        for function in vars(importlib.import_module(f"checks.{file.stem}")).values():
            declared = getattr(function, ATTRIBUTE, None)
            if declared is None or not declared.id.startswith("NET") or declared.slow:
                continue
            wanted = inspect.signature(function).parameters
            names = next(
                (found for fixture, found in members(lab.topology).items() if fixture in wanted), [""]
            )
            yield from (
                (declared, BreachContext(lab, name))
                for name in names
                if declared.applies(BreachContext(lab, name)) is None
            )


def walls(lab: Lab) -> Iterator[tuple[Breach, BreachContext]]:
    """Yield for each case one breach; two that share a breach share it here."""
    found: dict[tuple[str, str], tuple[Breach, BreachContext]] = {}
    for declared, context in cases(lab):
        breach = [
            breach for breach in declared.breaches if breach.applies(context) and _ALONE not in breach.name
        ][-1]
        found.setdefault((breach.name, context.case), (breach, context))
    yield from found.values()


def main() -> int:
    """Open the breaches, run the checks, revert everything, and print the result."""
    workspace = Workspace(state_root(), sys.argv[1])
    topology, inputs = labs.load_applied(workspace), build_inputs.load_inputs()
    labs.enter(topology, workspace, inputs.environment)
    with workspace.locked(), labs.open_lab(topology, workspace, inputs) as lab:
        with ExitStack() as closing:
            for breach, context in walls(lab):
                closing.callback(breach.close, context)
                say(f"open: {context.case or 'fleet'}: {breach.name}")
                breach.open(context)
            folder = run.examine(lab, prove=Proving.NOTHING, only=("NET",), progress=say)
        out(json.dumps(content_of((folder / "result.json").read_text())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
