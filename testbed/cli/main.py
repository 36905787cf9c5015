"""The command line: its verbs in order, and those that build and check labs (docs/design.md, section 7)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

import typer

from testbed.cli import checkpoint, consent, image, inspect, inventory, removal, reports, topology_files
from testbed.cli.check import check_walls
from testbed.cli.context import File, Name, entered, running_lab, to_close, topology_of
from testbed.cli.invocation.error_exit import status_of
from testbed.cli.invocation.interrupts import interruptible
from testbed.cli.invocation.options import Accel, Anew, Cold, Connect, Only, ProofPart, Prove, Yes
from testbed.cli.invocation.shell import Verbs, arranged
from testbed.cli.machines import audit, host, undeclared
from testbed.cli.output.terminal import Json, elapsed, out, out_json, say, set_loudness
from testbed.cli.up import UpOptions, bring_up
from testbed.drivers.capabilities import doctor as doctors
from testbed.drivers.host.private_files import PRIVATE_UMASK
from testbed.drivers.host.workspace import Workspace, cache_root, state_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.engine import observe
from testbed.engine.timing import chart
from testbed.errors import Exit, UsageError
from testbed.lab import build_inputs, session
from testbed.lab.breach_journal import Journal
from testbed.plan import render
from testbed.plan.diff import Action, diff
from testbed.plan.resources import OUTER, desired, places
from testbed.untrusted.text import line
from testbed.verify.machine_reference import MachineState, looks
from testbed.verify.runner.proof_cache import ALL_CASES, Proving

_EPILOG = """\b
Folders (TESTBED_STATE_DIR, TESTBED_CACHE_DIR; else below XDG_STATE_HOME, XDG_CACHE_HOME):
  labs, keys, reports   /var/lib/testbed; of an ordinary user ~/.local/state/testbed
  images, checkpoints   /var/cache/testbed; of an ordinary user ~/.cache/testbed
\b
Variables: each option has one, which its --help names. TESTBED_LAB and
TESTBED_TOPOLOGY stand for a lab and a file; NO_COLOR turns colours off,
FORCE_COLOR turns them on in CI.
\b
Exit codes:
    0  every check passed, or the command did what it should
    1  a wall is open, or a check cannot fail
    2  the topology or the command line is wrong
    3  nothing failed, but something was inconclusive or not looked at
    4  this machine cannot do it; the message says what to do
    5  the command did not finish; the message says why
    6  `plan --detailed-exitcode` found something to do, with --whole also
       something on a machine that nothing declares
  130  interrupted
"""
app = typer.Typer(
    cls=Verbs, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG,
    help="Emulated hypervisor fleets whose walls are proven.",
)  # fmt: skip
app.add_typer(inspect.app)
app.add_typer(inventory.app)
app.add_typer(audit.app)
app.add_typer(image.app, name="image")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(host.app, name="host")


def _version(wanted: bool) -> None:
    if wanted:
        out(f"testbed {version('testbed')}")
        raise typer.Exit


@app.callback()
def _common(
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="print no progress", envvar="TESTBED_QUIET")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="print where an error arose", envvar="TESTBED_VERBOSE")
    ] = False,
    _: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    set_loudness(quiet=quiet, verbose=verbose)


def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, what it cannot, and how to change that."""
    findings = doctors.examine(cache_root(), state_root())
    if as_json:
        out_json(
            [{"name": f.name, "ok": f.ok, "fact": f.fact, "remedy": f.remedy} for f in findings], indent=1
        )
    else:
        for finding in findings:
            out(f"{'ok ' if finding.ok else 'NO '} {finding.name}: {finding.fact}")
            if not finding.ok:
                out(f"      to do: {finding.remedy}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(Exit.NOT_CAPABLE)


def check(
    name: Name,
    prove: Prove = Proving.NOTHING,
    part: ProofPart = ALL_CASES,
    only: Only = None,
    slow: Annotated[
        bool, typer.Option("--slow", help="run what takes minutes as well", envvar="TESTBED_SLOW")
    ] = False,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="compare whole machines with their saved memory after the checks too, and with --only; "
            "a check of everything compares them before",
            envvar="TESTBED_WHOLE",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Attack the lab's walls and give a verdict."""
    topology, workspace, _ = running_lab(name)
    interruptible()
    with entered(topology, workspace, build_inputs.load_inputs()) as opened:
        Journal(workspace).require_closed()
        check_walls(opened, prove=prove, part=part, only=only or [], as_json=as_json, slow=slow, whole=whole)


def plan(
    source: File,
    as_json: Json = False,
    accelerator: Accel = None,
    detailed: Annotated[
        bool,
        typer.Option(
            "--detailed-exitcode",
            envvar="TESTBED_DETAILED_EXITCODE",
            help=f"exit with {int(Exit.CHANGES)} if there is something to do",
        ),
    ] = False,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            envvar="TESTBED_WHOLE",
            help="also compare whole machines of a running lab with their saved memory, which takes longer",
        ),
    ] = False,
) -> None:
    """Show what `up` would do, why, and the data that is lost; change nothing."""
    topology, _ = topology_of(source)
    inputs = build_inputs.outlook(want=accelerator)
    workspace = Workspace(state_root(), topology.name)
    found = lab_namespaces.find(topology.name, workspace.root)
    states: dict[str, MachineState] = {}
    if found is None:
        if whole:
            raise UsageError(
                "no machine can be read",
                fact=f"the lab {topology.name} does not run",
                remedy="run `testbed up` first, or leave --whole out",
            )
        result, left = (
            diff(desired(topology, inputs.plan_inputs), {}, frozenset(places(topology)) - {OUTER}),
            Journal(workspace).entries(),
        )
    else:
        with entered(topology, workspace, inputs) as opened:
            result, left = (
                observe.plan(opened.desired, opened.places, consent.held(workspace, inputs.plan_inputs)),
                Journal(workspace).entries(),
            )
            states = looks(opened, topology.machines) if whole else {}
    if as_json:
        data = render.data(result)
        out_json(
            {
                **data,
                "empty": data["empty"] and not left,
                "breaches": [entry.data() for entry in left],
                **({"machines": undeclared.data(states)} if whole else {}),
            },
            indent=1,
        )
    else:
        out("\n".join((*to_close(left), *([] if left and not result else [render.text(result)]))))
        if whole:
            out("\n".join(undeclared.text(topology.name, states)))
    code = Exit.CHANGES if result or left else undeclared.exit_code(states)
    if detailed or code is Exit.INCONCLUSIVE:
        raise typer.Exit(code)


def up(
    source: File,
    as_json: Json = False,
    accelerator: Accel = None,
    connect: Connect = "",
    cold: Cold = False,
    anew: Anew = False,
    yes: Yes = False,
    rebuild: Annotated[
        list[str] | None,
        typer.Option(
            "--rebuild",
            metavar="MACHINE",
            help="replace a machine of a running lab by one from its image, repeatable",
            envvar="TESTBED_REBUILD",
        ),
    ] = None,
    timings: Annotated[
        bool, typer.Option("--timings", help="draw what took how long", envvar="TESTBED_TIMINGS")
    ] = False,
) -> None:
    """Build the lab, or make it again what its topology says; asks before data is destroyed."""
    way = UpOptions(accelerator, connect, cold=cold, anew=anew, yes=yes, rebuild=rebuild or ())

    def tell(opened: session.Lab, done: Sequence[Action]) -> None:
        spans = way.trace.spans if timings else []
        if as_json:
            data = {
                "lab": opened.topology.name,
                "actions": len(done),
                "seconds": round(elapsed(), 1),
                "retried": opened.retried,
                "closed": opened.closed,
            }
            out_json(data | ({"timings": list(map(asdict, spans))} if timings else {}))
            return
        _tell(opened, done)
        if spans:
            out(chart(spans))

    bring_up(source, way, tell)


def _tell(opened: session.Lab, done: Sequence[Action]) -> None:
    name, seconds, retried = opened.topology.name, elapsed(), ", ".join(opened.retried)
    for breach in opened.closed:
        out(f"{name}: closed the breach {line(breach)}")
    if done:
        out(
            f"{name} is up: {render.number(done)} in {seconds:.0f} s"
            + (f"; started twice: {retried}" if retried else "")
        )
    else:
        out(f"{name}: nothing {'else ' * bool(opened.closed)}to do: the lab is what the topology says.")


def run(
    source: File,
    prove: Prove = Proving.NOTHING,
    as_json: Json = False,
    accelerator: Accel = None,
    connect: Connect = "",
    cold: Cold = False,
    anew: Anew = False,
    yes: Yes = False,
) -> None:
    """Build a lab, check it and report, in one go; the lab stays up."""

    def examine(opened: session.Lab, done: Sequence[Action]) -> None:
        topology = opened.topology
        say(f"{topology.name} is up: {render.number(done)}")
        try:
            check_walls(opened, prove=prove, only=[], as_json=as_json)
        finally:
            say(
                f"the lab stays up. Look around: `testbed status {topology.name}`, `testbed ssh "
                f"{topology.name} {topology.nodes[0].name}`. "
                f"Take it down: `testbed down {topology.name}`"
            )

    bring_up(source, UpOptions(accelerator, connect, cold=cold, anew=anew, yes=yes), examine)


for _verb in (
    doctor,
    topology_files.validate,
    plan,
    up,
    topology_files.graph,
    check,
    reports.report,
    run,
    removal.down,
    removal.prune,
):  # in the order of `--help`
    app.command()(_verb)  # fmt: skip


def main() -> None:
    """Run the command line; every error becomes three parts and an exit code.

    See `testbed.cli.invocation.error_exit`.
    """
    os.umask(PRIVATE_UMASK)
    sys.argv[1:] = arranged(sys.argv[1:])
    sys.exit(status_of(lambda: app(standalone_mode=False, prog_name="testbed")))
