"""The command line: verbs and exit codes (docs/design.md, section 7).

All else is in other modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli import checkpoint, consent, image, inspect, inventory
from testbed.cli.check import check_walls
from testbed.cli.context import File, Name, entered, located, running_lab, to_close, topology_of, workspace_of
from testbed.cli.error_exit import status_of
from testbed.cli.interrupts import interruptible
from testbed.cli.output.terminal import Json, elapsed, out, out_json, say, set_loudness, show, warn, width
from testbed.cli.shell import Verbs, arranged, known_controls, known_labs
from testbed.cli.up import UpOptions, bring_up
from testbed.drivers.capabilities import doctor as doctors
from testbed.drivers.host import memory
from testbed.drivers.host.ownership import lab_mark, marked, require_trust
from testbed.drivers.host.private_files import PRIVATE_UMASK
from testbed.drivers.host.workspace import Workspace, cache_root, labs, state_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.engine import observe
from testbed.engine.timing import chart
from testbed.errors import Exit, ProvisioningError, TestbedError, TopologyError, UsageError
from testbed.lab import session
from testbed.lab.breach_journal import Journal
from testbed.model.environment import Accelerator
from testbed.model.resolve import resolve
from testbed.plan import render
from testbed.plan.diff import Action, diff
from testbed.plan.resources import OUTER, desired, places
from testbed.report import formats
from testbed.report import graph as graphs
from testbed.report.result import content_of
from testbed.report.sarif import sarif
from testbed.report.screen import verdicts
from testbed.topology_file.loader import read
from testbed.topology_file.schema import is_name, json_schema
from testbed.untrusted.text import line
from testbed.verify.runner.proof_cache import Proving

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
    6  `plan --detailed-exitcode` found something to do
  130  interrupted
"""
app = typer.Typer(
    cls=Verbs, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG,
    help="Emulated hypervisor fleets whose walls are proven.",
)  # fmt: skip
app.add_typer(inspect.app)
app.add_typer(inventory.app)
app.add_typer(image.app, name="image")
app.add_typer(checkpoint.app, name="checkpoint")

Connect = Annotated[
    str,
    typer.Option(
        "--connect",
        metavar="URI",
        help="libvirt that runs the machines; built in if left out",
        envvar="TESTBED_CONNECT",
    ),
]
Cold = Annotated[
    bool, typer.Option("--cold", help="boot machines, and use no saved memory", envvar="TESTBED_COLD")
]
Anew = Annotated[
    bool,
    typer.Option("--anew", help="start from the topology, and from no checkpoint", envvar="TESTBED_ANEW"),
]


Yes = Annotated[
    bool, typer.Option("--yes", help="destroy data in a running lab without a question", envvar="TESTBED_YES")
]


def _proving(text: str) -> Proving:
    words = {
        "": Proving.NOTHING,
        "0": Proving.NOTHING,
        "false": Proving.NOTHING,
        "1": Proving.EVERYTHING,
        "true": Proving.EVERYTHING,
    }
    try:
        return words.get(text.lower()) or Proving(text.lower())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(Proving)}") from None


Prove = Annotated[
    Proving,
    typer.Option(
        "--prove",
        parser=_proving,
        metavar="[=changed|one]",
        envvar="TESTBED_PROVE",
        help="open each wall and see the check turn red; =changed: where something has changed since it was "
        "last proven; "
        "=one: by one breach of each check, and not always the same one",
    ),
]  # fmt: skip
Only = Annotated[
    list[str] | None,
    typer.Option(
        help="control id or its beginning, repeatable", envvar="TESTBED_ONLY", autocompletion=known_controls
    ),
]
Accel = Annotated[
    Accelerator | None,
    typer.Option("--accelerator", help="insist on kvm or tcg", envvar="TESTBED_ACCELERATOR"),
]


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


@app.command()
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


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="topology files")] = [],  # noqa: B006 - typer wants a literal
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of topology files")] = False,
    as_json: Json = False,
) -> None:
    """Check topology files; every mistake is reported in one pass."""
    if schema:
        out_json(json_schema(), indent=1)
    elif not files:
        raise UsageError(
            "nothing to validate", fact="no file was named", remedy="name a topology file, or use --schema"
        )
    rows: list[dict[str, object]] = []
    for file in files:
        try:
            found = resolve(read(file, machine_memory=memory.total()).spec)
            counts = {"nodes": len(found.nodes), "tenants": len(found.tenants), "guests": len(found.guests)}
            rows.append({"file": str(file), "ok": True, "name": found.name, **counts, "mistakes": []})
            if not as_json:
                out(f"{file}: fine: {', '.join(f'{count} {name}' for name, count in counts.items())}")
        except TestbedError as error:
            # a hostile file has hundreds of thousands of mistakes: copies only for those who want them
            mistakes = _mistakes(error) if as_json else []
            rows.append({"file": str(file), "ok": False, "mistakes": mistakes})
            if not as_json:
                warn(str(error))
    if as_json and not schema:
        out_json(rows, indent=1)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(Exit.USAGE)


def _mistakes(error: TestbedError) -> list[dict[str, object]]:
    """Return the mistakes of a file, for programs."""
    if isinstance(error, TopologyError):
        return [asdict(mistake) for mistake in error.mistakes]
    return [{"line": None, "path": "", "fact": f"{error.what}: {error.fact}", "remedy": error.remedy}]


@app.command()
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
) -> None:
    """Show what `up` would do, why, and the data that is lost; change nothing."""
    topology, _ = topology_of(source)
    inputs = session.outlook(want=accelerator)
    workspace = Workspace(state_root(), topology.name)
    found = lab_namespaces.find(topology.name, workspace.root)
    if found is None:
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
    if as_json:
        data = render.data(result)
        out_json(
            {**data, "empty": data["empty"] and not left, "breaches": [entry.data() for entry in left]},
            indent=1,
        )
    else:
        out("\n".join((*to_close(left), *([] if left and not result else [render.text(result)]))))
    if detailed and (result or left):
        raise typer.Exit(Exit.CHANGES)


@app.command()
def up(
    source: File,
    as_json: Json = False,
    accelerator: Accel = None,
    connect: Connect = "",
    cold: Cold = False,
    anew: Anew = False,
    yes: Yes = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="draw what took how long", envvar="TESTBED_TIMINGS")
    ] = False,
) -> None:
    """Build the lab, or make it again what its topology says; asks before data is destroyed."""
    way = UpOptions(accelerator, connect, cold=cold, anew=anew, yes=yes)

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
            f"{name} is up: {len(done)} actions in {seconds:.0f} s"
            + (f"; started twice: {retried}" if retried else "")
        )
    else:
        out(f"{name}: nothing {'else ' * bool(opened.closed)}to do: the lab is what the topology says.")


@app.command()
def graph(
    source: File,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="dot or mermaid",
            envvar="TESTBED_GRAPH",
            autocompletion=lambda: ["dot", "mermaid"],
        ),
    ] = "dot",
) -> None:
    """Draw a topology as DOT or Mermaid text."""
    topology, _ = topology_of(source)
    drawers = {"dot": graphs.dot, "mermaid": graphs.mermaid}
    if form not in drawers:
        raise UsageError(
            f"cannot draw as {form}",
            fact="known formats: dot, mermaid",
            remedy="use --format dot or --format mermaid",
        )
    out(drawers[form](topology))


_FORMATS = {"markdown": formats.markdown, "junit": formats.junit}
_FORMS = ("text", *_FORMATS, "sarif", "json")


@app.command()
def check(
    name: Name,
    prove: Prove = Proving.NOTHING,
    only: Only = None,
    slow: Annotated[
        bool, typer.Option("--slow", help="run what takes minutes as well", envvar="TESTBED_SLOW")
    ] = False,
    as_json: Json = False,
) -> None:
    """Attack the lab's walls and give a verdict."""
    topology, workspace, _ = running_lab(name)
    interruptible()
    with entered(topology, workspace, session.load_inputs()) as opened:
        Journal(workspace).require_closed()
        check_walls(opened, prove=prove, only=only or [], as_json=as_json, slow=slow)


@app.command()
def report(
    name: Name,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="text, markdown, junit, sarif or json",
            envvar="TESTBED_REPORT",
            autocompletion=lambda: [*_FORMS],
        ),
    ] = "text",
    folder: Annotated[
        bool, typer.Option("--folder", help="print the folder of that run, and nothing else")
    ] = False,
) -> None:
    """Show the latest run's report in another form."""
    workspace = workspace_of(name)
    _require_finished(workspace)
    latest = workspace.latest_run()
    data = content_of((latest / "result.json").read_text())
    if folder:
        out(str(latest))
    elif form == "json":
        out_json(data, indent=1)
    elif form == "sarif":
        out(sarif(data, located(name, workspace, data), version=version("testbed")))
    elif form == "text":
        show(verdicts(data, width()))
    elif form in _FORMATS:
        out(_FORMATS[form](data))
    else:
        raise UsageError(
            f"cannot report as {form}",
            fact=f"known formats: {', '.join(_FORMS)}",
            remedy="use --format with one of these",
        )


def _require_finished(workspace: Workspace) -> None:
    """Refuse to show an older run while an interrupted run without a result left a breach open.

    Raises:
        ProvisioningError: there is one.

    """
    journal = Journal(workspace)
    runs = [entry.record.run if entry.record else "" for entry in journal.entries()]
    if not all(run and (workspace.runs / run / "result.json").is_file() for run in runs):
        journal.require_closed()


@app.command()
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
        say(f"{topology.name} is up: {len(done)} actions")
        try:
            check_walls(opened, prove=prove, only=[], as_json=as_json)
        finally:
            say(
                f"the lab stays up. Look around: `testbed status {topology.name}`, `testbed ssh "
                f"{topology.name} {topology.nodes[0].name}`. "
                f"Take it down: `testbed down {topology.name}`"
            )

    bring_up(source, UpOptions(accelerator, connect, cold=cold, anew=anew, yes=yes), examine)


@app.command()
def down(
    name: Annotated[
        str | None,
        typer.Argument(
            help="name of a lab, or its topology file", envvar="TESTBED_LAB", autocompletion=known_labs
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="take every lab of this state folder down")
    ] = False,
) -> None:
    """Take a lab down; leaves nothing but the reports of its runs."""
    if everything:
        _down_all()
    elif name is not None:
        _down(workspace_of(name))
    else:
        raise UsageError("nothing to take down", fact="no lab was named", remedy="name a lab, or use --all")


def _down_all() -> None:
    """Take every lab down, and report afterwards those that could not be.

    Raises:
        TestbedError: the error of the first of them.

    """
    root = state_root()
    require_trust(root)
    failed: list[TestbedError] = []
    names = sorted({*labs(root), *(found.lab for found in lab_namespaces.enclosures(root))})
    for name in names:
        try:
            _down(Workspace(root, name))
        except TestbedError as error:
            warn(f"{name}: {error}")
            failed.append(error)
    if not names:
        out("no labs")
    if failed:
        fact = f"{len(failed)} of {len(names)} are still there"
        raise ProvisioningError(
            "not every lab is down", fact=fact, remedy="follow what is said of each above"
        )


def _down(workspace: Workspace) -> None:
    if os.path.lexists(workspace.folder):
        with workspace.locked():
            session.destroy(workspace)
    elif found := lab_namespaces.find(workspace.lab, workspace.root):
        lab_namespaces.destroy(found)
    else:
        raise UsageError(
            f"there is no lab {workspace.lab}",
            fact=f"{workspace.folder} does not exist",
            remedy="run `testbed status`",
        )
    out(f"{workspace.lab} is down")


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list", envvar="TESTBED_DRY_RUN")] = False,
) -> None:
    """Find remains of labs that do not run, and remove them."""
    root, count = state_root(), 0
    require_trust(root)
    for found in list(lab_namespaces.enclosures(root)):
        if not (root / found.lab / "topology.yaml").exists():
            count += 1
            out(f"namespaces of {found.lab}, held by process {found.pid}")
            if not dry_run:
                lab_namespaces.destroy(found)
    running = {found.lab for found in lab_namespaces.enclosures(root)}
    for folder in sorted(root.glob("*/v")):
        name = folder.parent.name
        if not is_name(name) or not marked(folder.parent, lab_mark(name)):
            out(f"left alone: {folder.parent}, which does not carry the mark of a lab")
        elif name not in running:
            workspace = Workspace(root, name)
            count += 1
            out(f"files of {workspace.lab}, which does not run")
            if not dry_run:
                with workspace.locked():
                    if lab_namespaces.find(name, root) is None:  # `up` may have held the lock until now
                        session.destroy(workspace)
    out("nothing to prune" if not count else f"{count} {'found' if dry_run else 'removed'}")


def main() -> None:
    """Run the command line; every error becomes three parts and an exit code.

    See `testbed.cli.error_exit`.
    """
    os.umask(PRIVATE_UMASK)
    sys.argv[1:] = arranged(sys.argv[1:])
    sys.exit(status_of(lambda: app(standalone_mode=False, prog_name="testbed")))
