"""Opens a wall of every check of the network at once, runs them all, and takes everything back: python allow_all.py LAB

Prints the result as ``testbed check --json`` does. A check that passes here would pass anywhere.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from testbed import lab as labs
from testbed import resources
from testbed.drivers.workspace import Workspace, state_root
from testbed.lab import Lab
from testbed.terminal import out, say
from testbed.verify import run
from testbed.verify.declare import ATTRIBUTE, Breach
from testbed.verify.stage import Stage

_ALONE = "in the clear"  # whoever still speaks TLS would wait for such a database, and nothing else could be opened


def walls(lab: Lab) -> Iterator[tuple[Breach, Stage]]:
    """Yield for each case of each check of the network one breach that its topology has."""
    names = {"node": [node.name for node in lab.testbed.nodes], "machine": [machine.name for machine in lab.testbed.machines]}
    for file in sorted(resources.checks().glob("test_*.py")):
        for function in vars(importlib.import_module(f"checks.{file.stem}")).values():
            declared = getattr(function, ATTRIBUTE, None)
            if declared is None or not declared.id.startswith("NET") or declared.slow:
                continue
            cases = next((found for fixture, found in names.items() if fixture in inspect.signature(function).parameters), [""])
            for stage in (Stage(lab, case) for case in cases):
                if declared.applies(stage) is None:
                    breaches = [breach for breach in declared.breaches if breach.applies(stage) and _ALONE not in breach.name]
                    yield breaches[-1], stage


def main() -> int:
    """Do it, and print the result."""
    workspace = Workspace(state_root(), sys.argv[1])
    testbed, ground = labs.load_applied(workspace), labs.ground()
    labs.enter(testbed, workspace, ground.environment)
    with workspace.locked(), labs.opened(testbed, workspace, ground) as lab:
        with ExitStack() as closing:
            for breach, stage in walls(lab):
                closing.callback(breach.close, stage)
                say(f"open: {stage.case or 'fleet'}: {breach.name}")
                breach.open(stage)
            folder = run.examine(lab, prove=False, only=("NET",), progress=say)
        out(json.dumps(run.load(folder)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
