"""One run of the checks, from a lab to ``result.json``."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from testbed import data_files, timeouts
from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.run_order import new_folder
from testbed.drivers.host.workspace import cache_root
from testbed.drivers.ssh.client import Host
from testbed.errors import ProvisioningError
from testbed.lab.breach_journal import Journal
from testbed.lab.session import Lab
from testbed.model.exposure import contacts
from testbed.plan.diff import Observed
from testbed.plan.resources import OUTER, Key, Kind
from testbed.report.formats import headline
from testbed.report.result import Run, to_json
from testbed.verify.drift import DriftWatch
from testbed.verify.evidence import Evidence
from testbed.verify.fleet import Fleet
from testbed.verify.heartbeats.watch import HeartWatch
from testbed.verify.machine_reference import BEGINNING, END, ReferenceWatch
from testbed.verify.probe.client import end_all, start_all
from testbed.verify.runner import leftovers
from testbed.verify.runner.execution import Revive
from testbed.verify.runner.plugin import Checks, require, run_checks
from testbed.verify.runner.proof_cache import ALL_CASES, Part, ProofCache, Proving
from testbed.verify.runner.trouble import Trouble

_PATIENCE = timeouts.CHECK_LOGIN


def examine(
    lab: Lab,
    *,
    prove: Proving,
    only: tuple[str, ...],
    progress: Callable[[str], None],
    part: Part = ALL_CASES,
    slow: bool = False,
    whole: bool = False,
    revive: Revive = tuple,
) -> Path:
    """Run the checks and return the run's folder, with ``result.json`` and the evidence.

    Args:
        prove: which breaches to try.
        part: of which cases.
        only: control ids, or beginnings of them; all if empty.
        whole: whether whole machines are compared with their reference after the checks too, and before
            those of some controls; before those of all controls they always are.
        revive: restarts guests that crashed during the run, and returns their labels.

    Raises:
        KeyboardInterrupt: the run was interrupted; the observations so far are stored all the same.
        MachineError: this Python would not run the checks as they are written.
        UsageError: `only` selects nothing.
    """
    controls = require(data_files.checks(), only).controls
    started, clock = datetime.now(UTC), time.monotonic()
    folder = new_folder(lab.workspace.runs, started)
    environment, trouble = _environment(lab), Trouble(progress)
    fleet = Fleet.of(lab, Evidence(folder / "evidence"))
    _await_all(lab, trouble)
    # Phase before the cases: nothing has been sent or changed yet.
    watch, reference = DriftWatch(fleet, only), ReferenceWatch(fleet, only, whole)
    hearts = HeartWatch(fleet, only)
    with trouble.kept("taking the first heartbeats"):
        hearts.begin()
    with trouble.kept("looking at the configuration before the checks"):
        watch.begin()
    with trouble.kept("reading the machines before the checks"):
        reference.look(BEGINNING)
    try:
        hearts.attacked()
        plugin = _attack(
            fleet, _proven(lab, environment, prove, part), only, trouble, slow=slow, revive=revive
        )
    finally:
        with trouble.kept("taking the last heartbeats"):
            hearts.stop()
    # Phase after the cases: every breach has been reverted, or is reported.
    trouble.items += plugin.errors
    with trouble.kept("judging the heartbeats"):
        hearts.judge(last_look=not plugin.interrupted)
    if not plugin.interrupted:
        with trouble.kept("looking at the configuration after the checks"):
            watch.end()
        with trouble.kept("reading the machines after the checks"):
            reference.look(END)
    for told in (*reference.told, *hearts.told):
        trouble.tell(told)
    if watch.interrupted or prove is not Proving.NOTHING:
        trouble.items += watch.trouble
    trouble.items += [f"still open, perhaps: {entry}" for entry in Journal(lab.workspace).entries()]
    with trouble.kept("writing matrix.json"):
        _write_matrix(fleet, folder / "matrix.json")
    _write(
        folder,
        Run(
            lab.topology.name,
            lab.topology.digest,
            environment,
            started.isoformat(timespec="seconds"),
            round(time.monotonic() - clock, 1),
            (*hearts.among(plugin.results), *watch.results, *reference.results),
            (*lab.retried, *plugin.revived),
            tuple(trouble.items),
            controls,
            only,
        ),
    )
    if plugin.interrupted or watch.interrupted:
        raise KeyboardInterrupt
    return folder


def _environment(lab: Lab) -> dict[str, str]:
    environment = lab.inputs.environment
    levels = {"outer": str(environment.outer), "inner": str(environment.inner), "note": environment.note}
    return {
        **levels,
        **dict(environment.versions),
        **{f"image {image.name}": image.key for image in lab.inputs.images.values()},
    }


def _await_all(lab: Lab, trouble: Trouble) -> None:
    """Wait a while for every machine, and report whether each answers."""
    machines = lab.outer.observe()
    with ThreadPoolExecutor(max_workers=len(lab.hosts)) as pool:
        for told in pool.map(partial(_await, machines=machines), lab.hosts):
            trouble.tell(told)


def _attack(
    fleet: Fleet,
    proven: ProofCache | None,
    only: tuple[str, ...],
    trouble: Trouble,
    *,
    slow: bool,
    revive: Revive,
) -> Checks:
    """Run the checks; in any case, end the programs that they started in guests and on machines."""
    before = leftovers.look(fleet)
    try:
        return run_checks(
            fleet, data_files.checks(), prove=proven, only=only, progress=trouble.tell,
            slow=slow, revive=revive, prepare=partial(start_all, fleet),
        )  # fmt: skip
    finally:
        with trouble.kept("ending the programs in guests and on machines"):
            end_all(fleet)
        with trouble.kept("looking for what checks have left behind"):
            trouble.items += leftovers.left_behind(fleet, before)


def _write_matrix(fleet: Fleet, file: Path) -> None:
    rows = {str(cell): cell.as_row() for cell in (*fleet.matrix.cells, *contacts(fleet.topology))}
    write_secret(file, json.dumps([*(rows | fleet.reach).values()], default=str).encode())


def _write(folder: Path, run: Run) -> None:
    """Write ``result.json`` atomically.

    Raises:
        ProvisioningError: it cannot be written; the error contains the verdict.

    """
    data = to_json(run)
    try:
        write_secret(folder / "result.json", json.dumps(data, indent=1, default=str).encode())
    except OSError as error:
        fact = f"{folder / 'result.json'}: {error.strerror}; the verdict is: {headline(data)}"
        raise ProvisioningError(
            "the result cannot be stored", fact=fact, remedy="make room for it, and repeat the checks"
        ) from error


def _proven(lab: Lab, environment: Mapping[str, str], prove: Proving, part: Part) -> ProofCache | None:
    if prove is Proving.NOTHING:
        return None
    digests = sorted(image.digest for image in lab.inputs.images.values())
    runners = (f"pytest {pytest.__version__}", f"Python {platform.python_version()}")
    facts = [f"{name}: {value}" for name, value in sorted(environment.items())]
    configuration = [lab.topology.digest, *facts, *digests, *runners]
    return ProofCache(cache_root() / "proven.json", data_files.checks().parent, configuration, prove, part)


def _await(host: Host, machines: Observed) -> str:
    """Wait a while for a running machine; return whether it answers, in words.

    A silent machine makes the checks that need it inconclusive.
    """
    state = machines.get(Key(OUTER, Kind.MACHINE, host.name), {}).get("state", "not there")
    if state != "running":
        return f"{host.name} does not answer: it is {state}"
    try:
        host.wait(_PATIENCE)
    except ProvisioningError as error:
        return f"{host.name} does not answer: {error.fact}"
    return f"{host.name} answers"
