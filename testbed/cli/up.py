"""Build a running lab from a topology file, in the shortest way.

The ways are a checkpoint, saved memory, or a boot.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from testbed import data_files
from testbed.cli import consent
from testbed.cli.context import folder_of, spec_of
from testbed.cli.invocation.interrupts import ended_at_once, interruptible
from testbed.cli.output.terminal import displayed, say, undisplay, warn
from testbed.drivers.capabilities import doctor
from testbed.drivers.host import memory
from testbed.drivers.host.folders import require_room
from testbed.drivers.host.workspace import Workspace, cache_root, state_root
from testbed.drivers.hypervisor import external_daemon
from testbed.drivers.hypervisor.connection import started
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.places import image_import
from testbed.drivers.snapshots.checkpoint import Checkpoint
from testbed.drivers.snapshots.checkpoint_store import CheckpointStore
from testbed.engine import apply
from testbed.engine.observe import Look
from testbed.engine.timing import Trace
from testbed.errors import Exit, MachineError, TestbedError, UsageError
from testbed.lab import build_inputs, session
from testbed.lab.breach_journal import Journal
from testbed.model.environment import Accelerator
from testbed.model.numbers import Numbers
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.plan.diff import Action
from testbed.topology_file.quantities import MIB, format_size
from testbed.topology_file.schema import Spec
from testbed.topology_file.validation import MACHINE_RESERVE


@dataclass(frozen=True, slots=True)
class UpOptions:
    """How a lab may be built.

    Args:
        want: accelerator to insist on.
        connect: URI of the libvirt that runs the machines; the empty string stands for the built-in one, or
            the lab's own.
        cold: use no saved memory of any kind.
        anew: use no checkpoint, as `--anew` says.
        checkpoint: the one to use; the latest that fits if left out.
        yes: destroy data without a question.
        rebuild: names of machines to replace, although they are what the topology says.
        trace: records how long each step takes.

    """

    want: Accelerator | None = None
    connect: str = ""
    cold: bool = False
    anew: bool = False
    checkpoint: Checkpoint | None = None
    yes: bool = False
    rebuild: Sequence[str] = ()
    trace: Trace = field(default_factory=Trace)


def bring_up(
    source: str | Path, way: UpOptions, then: Callable[[session.Lab, Sequence[Action]], None]
) -> None:
    """Build a lab, or bring it back to the state of its topology, and go on inside it.

    Args:
        source: the topology's file, or the name of a lab.
        then: called with the lab, and the actions that were carried out.

    """
    interruptible()
    spec, text = spec_of(source)
    doctor.require(cache_root(), state_root())
    workspace = Workspace(state_root(), spec.name)
    running = lab_namespaces.find(spec.name, workspace.root) is not None
    if way.rebuild:
        _require_rebuildable(way.rebuild, resolve(spec), running=running)
    if not running:
        declared = resolve(spec)
        require_room(workspace.root, spec.name, [machine.name for machine in declared.machines])
        _require_memory(declared)
    consent.require_images(workspace, yes=way.yes)
    with way.trace.span("images"), displayed("bake"):
        inputs = build_inputs.prepare_inputs(say, want=way.want)
    say(f"nodes run under {inputs.environment.outer}: {inputs.environment.note}")
    workspace.claim()
    with workspace.locked():
        topology = resolve(spec, session.given_numbers(workspace))
        _require_same(topology, workspace)
        running = lab_namespaces.find(topology.name, workspace.root) is not None
        _require_connection(workspace, way.connect, running=running)
        topology, inputs = _going_on(spec, topology, inputs, workspace, way)
        beside = folder_of(source)
        if beside:
            image_import.copy(topology, beside, workspace.images)
        if not running:
            _store(topology, text, workspace)
            _begin(inputs, workspace, way)
        if inputs.checkpoint:
            inputs.checkpoint.unpack(workspace)
        if not way.cold:
            with way.trace.span("saved memory", ["images"]):
                inputs = _shortened(inputs, topology, workspace, save=not running)
        taken = session.enter(topology, workspace, inputs.environment)
        with session.open_lab(topology, workspace, inputs, taken, progress=say) as opened:
            opened.outer.rebuild.update(way.rebuild)
            seen = None
            if running:
                with at_once_on_interrupt():
                    seen = consent.agree(opened, yes=way.yes)
                _store(topology, text, workspace)
            session.settle(topology, workspace)
            with displayed("up"), at_once_on_interrupt():
                done = _converge(opened, way.trace, seen)
            session.remember_numbers(workspace, Numbers.of(topology))  # those of removed names are free now
            then(opened, done)


def _store(topology: Topology, text: str, workspace: Workspace) -> None:
    """Remember a topology, and its numbers beside those given before, ahead of any change."""
    session.remember_numbers(workspace, Numbers.of(topology).beside(session.given_numbers(workspace)))
    session.apply_copy(text, workspace)


def _begin(inputs: build_inputs.BuildInputs, workspace: Workspace, way: UpOptions) -> None:
    """Decide, for a lab that does not run, who runs its machines."""
    if way.connect:
        workspace.connect(way.connect)
    if not workspace.connection:
        kvm = inputs.environment.outer is Accelerator.KVM
        if reason := workspace.assign_account(cache_root(), kvm=kvm):
            say(f"emulators run as you, and not under an account of this lab's: {reason}")


def _require_memory(topology: Topology) -> None:
    """Refuse a new lab that does not fit into the memory that running labs leave.

    Labs of this user count.

    Raises:
        MachineError: it does not; the error says what each of them has.

    """
    root = state_root()
    others: dict[str, tuple[int, str]] = {}  # octets, and the command that takes the lab down
    for found in lab_namespaces.enclosures():
        with suppress(TestbedError, OSError):  # a lab that is being taken down
            machines = session.load_applied(Workspace(found.state, found.lab)).machines
            ours = found.state == root
            name = found.lab if ours else str(found.state / found.lab)
            variable = "" if ours else f"TESTBED_STATE_DIR={shlex.quote(str(found.state))} "
            size = sum(item.memory for item in machines)
            others[name] = size, f"{variable}testbed down {found.lab}"
    wanted = sum(machine.memory for machine in topology.machines)
    total = memory.total()
    left = max(total - MACHINE_RESERVE - sum(size for size, _ in others.values()), 0)
    if others and wanted > left:
        shares = ", ".join(f"{name} has {format_size(size)}" for name, (size, _) in sorted(others.items()))
        fact = (
            f"it wants {format_size(wanted)}, and {format_size(left // MIB * MIB)} of "
            f"{format_size(total // MIB * MIB)} are left: {shares}, "
            f"and {format_size(MACHINE_RESERVE)} are for the machine itself"
        )
        remedy = f"take one down, as with `{min(others.items())[1][1]}`; or declare fewer or smaller nodes"
        raise MachineError(
            f"the lab {topology.name} does not fit beside the labs that run", fact=fact, remedy=remedy
        )


def _require_same(topology: Topology, workspace: Workspace) -> None:
    """Refuse to change a lab's topology while its journal holds a breach.

    Only the topology that a breach was opened in can close it.

    Raises:
        UsageError: the topology is another one.
    """
    left = Journal(workspace).entries()
    if left and session.load_applied(workspace).digest != topology.digest:
        what = (
            f"the lab {workspace.lab} cannot get another topology while a wall is open that a breach opened"
        )
        remedy = (
            f"run `testbed up {workspace.lab}`, which closes it, and then this command; or `testbed down "
            f"{workspace.lab}`"
        )
        raise UsageError(what, fact="; ".join(map(str, left)), remedy=remedy)


def _converge(opened: session.Lab, trace: Trace, seen: Look | None = None) -> list[Action]:
    """Make a lab match its topology, and close breaches that a killed process left open.

    Settings come first, since a breach may block our own access. They come again afterwards, for changes that
    the closing has made, and for resources that could not be repaired before.

    Args:
        trace: learns what took how long.
        seen: what was seen just before, in a lab that ran.

    Raises:
        ProvisioningError: something could not be done, or a breach may still be in force.

    """
    if not Journal(opened.workspace).entries():
        return apply.converge(opened.desired, opened.places, say, trace, seen)
    done: list[Action] = []
    try:
        done = apply.converge(opened.desired, opened.places, say, trace)
    except TestbedError as error:
        say(f"not yet what it must be: {error.what}: {error.fact}")
    from testbed.verify.runner.breach_recovery import close_left  # noqa: PLC0415 - checks are loaded only where one has left something open

    opened.closed += close_left(opened, data_files.checks(), say)
    return done + apply.converge(opened.desired, opened.places, say, trace)


def _require_rebuildable(names: Sequence[str], topology: Topology, *, running: bool) -> None:
    """Return if machines can be rebuilt.

    Raises:
        UsageError: some are not in the topology, or the lab does not run.
    """
    known = [machine.name for machine in topology.machines]
    if unknown := [name for name in names if name not in known]:
        fact = f"its machines are {', '.join(known)}"
        remedy = "name one of them, or leave --rebuild out"
        raise UsageError(
            f"{topology.name} has no machine {', '.join(map(repr, unknown))}", fact=fact, remedy=remedy
        )
    if names and not running:
        raise UsageError(
            f"{', '.join(names)} cannot be rebuilt",
            fact=f"the lab {topology.name} does not run",
            remedy="leave --rebuild out: `up` makes every machine from its image",
        )


def _require_connection(workspace: Workspace, uri: str, *, running: bool) -> None:
    """Return if a libvirt can run a lab.

    Raises:
        UsageError: another one does already, or the URI is of no daemon on this machine.
        MachineError: we cannot use it.

    """
    if uri in ("", workspace.connection):
        return
    external_daemon.require(uri)
    if running:
        fact = f"its machines are run by {workspace.connection or 'the built-in libvirt'}"
        remedy = f"run `testbed down {workspace.lab}` first"
        raise UsageError(f"the lab {workspace.lab} cannot move to {uri}", fact=fact, remedy=remedy)


def _going_on(
    spec: Spec, topology: Topology, inputs: build_inputs.BuildInputs, workspace: Workspace, way: UpOptions
) -> tuple[Topology, build_inputs.BuildInputs]:
    """Return the topology and the inputs of a lab, with a checkpoint if it can go on from one.

    It has the numbers of the checkpoint then. A lab with machines goes on with those; one whose `up` was
    killed before they started has none.
    """
    if way.cold or way.anew or way.connect or workspace.connection or started(workspace.libvirt):
        return topology, inputs
    store = CheckpointStore(cache_root(), inputs.images, inputs.environment)
    found = (
        (way.checkpoint, resolve(spec, way.checkpoint.numbers))
        if way.checkpoint
        else store.find(lambda numbers: resolve(spec, numbers), workspace)
    )
    if found is None:
        return topology, inputs
    checkpoint, topology = found
    say(f"going on from the checkpoint {checkpoint.name}, saved {checkpoint.saved}")
    return topology, replace(inputs, checkpoint=checkpoint)


def _shortened(
    inputs: build_inputs.BuildInputs, topology: Topology, workspace: Workspace, *, save: bool
) -> build_inputs.BuildInputs:
    """Add the saved memory that machines can start from to a lab's inputs.

    Args:
        save: memory is saved first if need be, unless there is a checkpoint.

    """
    if workspace.connection:
        say(
            f"machines boot, without saved memory: {workspace.connection} runs them, perhaps with "
            "another QEMU than ours"
        )
        return inputs
    with displayed("save memory"), at_once_on_interrupt():
        return build_inputs.attach_snapshots(inputs, topology, say, save=save and not inputs.checkpoint)


def at_once_on_interrupt() -> AbstractContextManager[None]:
    """Let a signal end the process at once, without waiting for threads; `up` resumes.

    The threads wait for machines.
    """

    def end() -> None:
        try:
            undisplay()
            warn("interrupted; what was done stays, and the same command resumes")
        finally:  # a stream may refuse to be written to in a signal handler
            os._exit(Exit.INTERRUPTED)

    return ended_at_once(end)
