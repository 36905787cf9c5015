"""A simulated wall, files with checks of it, and a fleet without machines for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from testbed.drivers.host.workspace import Workspace
from testbed.errors import Exit
from testbed.model.resolve import resolve
from testbed.report.result import Run, exit_code, to_json
from testbed.topology_file.loader import read
from testbed.verify.evidence import Evidence
from testbed.verify.interruptions import Interruptions
from testbed.verify.runner.plugin import Checks, run_checks
from testbed.verify.runner.proof_cache import ProofCache, Proving

NUMBERS = count()
TOPOLOGY = Path(__file__).parents[1] / "topologies/one-node.yaml"
HEAD = """
import time
from testbed.errors import InstrumentError, ProvisioningError
from testbed.verify.check import Breach, Effect, check

WALL = {"open": False, "stuck": False}

def look(fleet):
    fleet.evidence.record("node", "command", "look", "saw the wall", time.time())
    return WALL["open"]

def opens(context): WALL["open"] = True
def closes(context):
    if not WALL["stuck"]: WALL["open"] = False
BREACH = Breach("opens it", opens, closes, lambda context: WALL["open"])
"""


@dataclass
class FakeFleet:
    """As much of a fleet as the plug-in needs."""

    topology: Any
    evidence: Evidence
    machines: dict[str, Any]
    lab: Any
    phases: int = 0
    focus: str = ""
    interruptions: Interruptions = field(default_factory=Interruptions)

    def new_phase(self, focus: str = "") -> None:
        self.phases += 1
        self.focus = focus

    def separate(self) -> FakeFleet:
        return replace(self, evidence=self.evidence.separate())


def fake_fleet(folder: Path, file: Path = TOPOLOGY) -> FakeFleet:
    """Return a fleet whose machines have names and nothing else."""
    topology = resolve(read(file).spec)
    machines = {machine.name: SimpleNamespace(name=machine.name) for machine in topology.machines}
    nodes = {node.name: machines[node.name] for node in topology.nodes}
    (folder / "lab").mkdir(exist_ok=True)
    opened = SimpleNamespace(topology=topology, nodes=nodes, workspace=Workspace(folder, "lab"))
    return FakeFleet(topology, Evidence(folder / "evidence"), machines, opened)


def checks_of(folder: Path, body: str) -> Path:
    """Write a file of checks; return its folder."""
    checks = folder / "checks"
    checks.mkdir(exist_ok=True)
    (checks / f"test_wall_{next(NUMBERS)}.py").write_text(HEAD + body)  # pytest keeps modules by name
    return checks


def run_body(
    folder: Path,
    body: str,
    *,
    prove: bool = False,
    only: tuple[str, ...] = (),
    topology: Path = TOPOLOGY,
    **given: Any,
) -> Checks:
    """Run the checks of one file."""
    given.setdefault("progress", lambda _: None)
    proven = ProofCache(folder / "proven.json", folder, [], Proving.EVERYTHING) if prove else None
    fleet: Any = fake_fleet(folder, topology)
    return run_checks(fleet, checks_of(folder, body), prove=proven, only=only, **given)


def declare(extra: str = "breaches=(BREACH,)", objective: str = "it holds", control: str = "NET-01") -> str:
    """Return the declaration of a check."""
    return f'\n@check(id="{control}", objective="{objective}", severity="high", {extra})\n'


def code(plugin: Checks, **more: Any) -> Exit:
    """Return the exit code of a run."""
    return exit_code(
        to_json(Run("lab", "d", {}, "now", 1.0, tuple(plugin.results), (), tuple(plugin.errors), **more))
    )
