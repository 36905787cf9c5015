"""One run of the checks, from a lab to ``result.json``."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from testbed import resources
from testbed.drivers.journal import Journal
from testbed.drivers.ssh import Host
from testbed.drivers.workspace import cache_root
from testbed.errors import ProvisioningError
from testbed.lab import Lab
from testbed.model.surroundings import contacts
from testbed.plan.diff import Observed
from testbed.plan.resources import OUTER, Key, Kind
from testbed.report.result import Run, to_json
from testbed.verify import traces
from testbed.verify.drift import Watch
from testbed.verify.evidence import Evidence
from testbed.verify.fleet import Fleet
from testbed.verify.plugin import Revive, run_checks
from testbed.verify.probing import end_all, start_all
from testbed.verify.proven import Proven, Proving

_PATIENCE = 60.0  # seconds


def examine(
    lab: Lab, *, prove: Proving, only: tuple[str, ...], progress: Callable[[str], None], slow: bool = False, revive: Revive = tuple
) -> Path:
    """Run the checks against a lab and return the run's folder, which holds ``result.json`` and the evidence.

    Args:
        prove: which breaches to try.
        revive: starts guests again that have crashed meanwhile, and returns their labels.

    Raises:
        KeyboardInterrupt: the run was interrupted; what had been observed is written down all the same.

    """
    started, clock = datetime.now(UTC), time.monotonic()
    ground = lab.ground.environment
    environment = {
        "outer": str(ground.outer), "inner": str(ground.inner), "note": ground.note, **dict(ground.versions),
        **{f"image {image.name}": image.key for image in lab.ground.images.values()},
    }  # fmt: skip
    name = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    folder = lab.workspace.runs / name
    evidence = Evidence(folder / "evidence")
    fleet = Fleet.of(lab, evidence)
    machines = lab.outer.observe()
    with ThreadPoolExecutor(max_workers=len(lab.hosts)) as pool:
        for told in pool.map(partial(_await, machines=machines), lab.hosts):
            progress(told)
    before = traces.look(fleet)
    watch = Watch(fleet, only)
    watch.begin()
    try:
        plugin = run_checks(
            fleet, resources.checks(), prove=_proven(lab, environment, prove), only=only, progress=progress, slow=slow, revive=revive,
            prepare=partial(start_all, fleet),
        )  # fmt: skip
    finally:
        end_all(fleet)
        left_behind = traces.left_behind(fleet, before)
    if not plugin.interrupted:
        watch.end()
    rows = {str(cell): cell.as_row() for cell in fleet.matrix.cells} | {str(cell): cell.as_row() for cell in contacts(lab.testbed)}
    (folder / "matrix.json").write_text(json.dumps([*(rows | fleet.reach).values()], default=str))
    trouble = [*plugin.errors, *left_behind, *(f"still open, perhaps: {entry}" for entry in Journal(lab.workspace).entries())]
    if watch.interrupted or prove is not Proving.NOTHING:
        trouble += watch.trouble
    run = Run(
        lab.testbed.name, lab.testbed.digest, environment, started.isoformat(timespec="seconds"),
        round(time.monotonic() - clock, 1), (*plugin.results, *watch.results), (*lab.retried, *plugin.revived),
        tuple(trouble),
    )  # fmt: skip
    unfinished = folder / "result.json.partial"
    unfinished.write_text(json.dumps(to_json(run), indent=1, default=str))
    unfinished.rename(folder / "result.json")
    if plugin.interrupted or watch.interrupted:
        raise KeyboardInterrupt
    return folder


def _proven(lab: Lab, environment: Mapping[str, str], prove: Proving) -> Proven | None:
    if prove is Proving.NOTHING:
        return None
    digests = sorted(image.digest for image in lab.ground.images.values())
    configuration = [lab.testbed.digest, *(f"{name}: {value}" for name, value in sorted(environment.items())), *digests]
    return Proven(cache_root() / "proven.json", resources.checks().parent, configuration, prove)


def _await(host: Host, machines: Observed) -> str:
    """Wait a while for a machine that runs; one that does not answer makes the checks that need it inconclusive."""
    state = machines.get(Key(OUTER, Kind.MACHINE, host.name), {}).get("state", "not there")
    if state != "running":
        return f"{host.name} does not answer: it is {state}"
    try:
        host.wait(_PATIENCE)
    except ProvisioningError as error:
        return f"{host.name} does not answer: {error.fact}"
    return f"{host.name} answers"
