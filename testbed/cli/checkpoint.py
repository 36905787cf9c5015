"""The verbs about checkpoints; `up` starts from one by itself."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from testbed.cli.context import Name, entered, running_lab
from testbed.cli.invocation.shell import known_checkpoints
from testbed.cli.output.terminal import Json, out, say
from testbed.cli.up import UpOptions, bring_up
from testbed.drivers.host.workspace import Workspace, cache_root, state_root
from testbed.drivers.snapshots import checkpoint as checkpoints
from testbed.drivers.snapshots.checkpoint_store import CheckpointStore, refusal
from testbed.engine import observe
from testbed.errors import ProvisioningError, TestbedError, UsageError
from testbed.lab import build_inputs, session
from testbed.lab.breach_journal import Journal
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.topology_file.loader import read

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Checkpoints: whole labs saved while they run: save, list, restore, rm.",
)

Saved = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="name of a checkpoint", autocompletion=known_checkpoints)
]


@app.command("save")
def save(
    name: Name,
    called: Annotated[str, typer.Option("--name", help="the checkpoint's name; the lab's if left out")] = "",
) -> None:
    """Save a running lab, which pauses for some seconds.

    `up` starts the same topology from it.
    """
    topology, workspace, _ = running_lab(name)
    inputs = build_inputs.load_inputs()
    _require_saving(topology, workspace, inputs)
    store = CheckpointStore(cache_root(), inputs.images, inputs.environment)
    with entered(topology, workspace, inputs) as opened:
        Journal(workspace).require_closed()
        plan = observe.plan(opened.desired, opened.places)
        if plan:
            fact = f"{len(plan.actions)} differences; the first: {plan.actions[0]}"
            raise UsageError(
                f"{topology.name} is not what its topology says",
                fact=fact,
                remedy=f"run `testbed up {name}`, then save it",
            )
        saved = store.save(
            topology,
            workspace,
            opened.outer.hypervisor,
            called or topology.name,
            say,
            guests_paused=opened.guests_paused(),
        )
        for place in opened.places:  # their clocks have stood still
            place.recover()
    out(
        f"{saved.name}: {saved.size // 2**20} MiB; start from it with `testbed up`, go back to it with "
        "`testbed checkpoint restore`"
    )


def _require_saving(topology: Topology, workspace: Workspace, inputs: build_inputs.BuildInputs) -> None:
    """Refuse to save a lab that cannot be saved while its tenants run.

    Raises:
        UsageError: it cannot.

    """
    reason = (
        f"{workspace.connection} runs its machines" if workspace.connection else refusal(inputs.environment)
    )
    if reason:
        remedy = "start it from its topology; machines start from saved memory before their tenants do"
        raise UsageError(f"{topology.name} cannot be saved", fact=reason, remedy=remedy)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the checkpoints, and why one cannot be used."""
    found = [(item, _unusable(item)) for item in checkpoints.stored(cache_root())]
    if as_json:
        out(
            json.dumps(
                [
                    {
                        "name": item.name,
                        "lab": item.lab,
                        "saved": item.saved,
                        "bytes": item.size,
                        "unusable": reason,
                    }
                    for item, reason in found
                ]
            )
        )
        return
    lines = [
        f"{item.name:20} {item.lab:20} saved {item.saved}, {item.size // 2**20} MiB"
        + (f"; cannot be used: {reason}" if reason else "")
        for item, reason in found
    ]
    out("\n".join(lines) or "no checkpoints")


def _unusable(found: checkpoints.Checkpoint) -> str:
    """Return why a checkpoint cannot be used on this machine, or the empty string."""
    try:
        inputs = build_inputs.load_inputs()
        topology = resolve(read(found.topology_file).spec, found.numbers)
    except TestbedError as error:
        return f"{error.what}: {error.fact}"
    store = CheckpointStore(cache_root(), inputs.images, inputs.environment)
    return store.unusable(found, topology, Workspace(state_root(), found.lab))


@app.command("rm")
def rm(name: Saved) -> None:
    """Remove a checkpoint."""
    checkpoints.remove(checkpoints.named(cache_root(), name))


@app.command("restore")
def restore(name: Saved) -> None:
    """Replace a lab by its checkpoint, and let it continue.

    A running lab of that name is taken down first.
    """
    found = checkpoints.named(cache_root(), name)
    reason = _unusable(found)
    if reason:
        raise ProvisioningError(
            f"the checkpoint {name} cannot be used",
            fact=reason,
            remedy="run `testbed up`, and save the lab again",
        )
    workspace = Workspace(state_root(), found.lab)
    if os.path.lexists(workspace.folder):
        with workspace.locked():
            session.destroy(workspace)
    bring_up(
        found.topology_file,
        UpOptions(checkpoint=found),
        lambda opened, _: out(f"{opened.topology.name} is as it was {found.saved}"),
    )
