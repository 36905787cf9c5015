"""The verbs that record hosts of others, and give them back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from testbed.adoption import giving_back
from testbed.adoption.compare import Difference
from testbed.adoption.giving_back import Compared
from testbed.adoption.store import Record, recorded
from testbed.cli.machines.audit import Configuration
from testbed.cli.output.terminal import Json, agreed, attended, out, out_json, say, show, warn
from testbed.drivers.host.workspace import state_root
from testbed.errors import Exit, ProvisioningError, TestbedError, UsageError
from testbed.report.columns import Line, table
from testbed.untrusted.text import line

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Hosts of others: record one before it is changed, compare it, give it back.",
)

Host = Annotated[str, typer.Argument(metavar="HOST", help="a host as ssh takes it", show_default=False)]
Consent = Annotated[bool, typer.Option("--yes", help="go on without a question", envvar="TESTBED_YES")]

_SHOWN = 40  # differences of one kind that people see; --json has all


@app.command("record")
def record(
    hosts: Annotated[
        list[str], typer.Argument(help="hosts as ssh takes them", metavar="HOST", show_default=False)
    ],
    configuration: Configuration = None,
) -> None:
    """Write down what hosts are, with copies of their settings; change nothing on them."""
    made = [Record(state_root(), host) for host in hosts]
    failed = 0
    for item in made:
        try:
            state = giving_back.record(item, configuration)
        except TestbedError as error:
            if len(made) == 1:
                raise
            failed += 1
            warn(f"error: {error}")
            continue
        size = item.archive.stat().st_size
        out(
            f"{line(item.host)}: {len(state.packages)} packages, {len(state.files)} files, "
            f"{len(state.units)} units, {len(state.sysctls)} kernel settings; "
            f"{size / 2**20:.1f} MiB in {item.folder}"
        )
    if failed:
        fact, remedy = f"{failed} of {len(made)} failed", "follow what is said of each above"
        raise ProvisioningError("not every host is recorded", fact=fact, remedy=remedy)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the recorded hosts."""
    found = recorded(state_root())
    if as_json:
        out_json(
            [{"host": item.host, "made": item.made.isoformat(), "folder": str(item.folder)} for item in found]
        )
        return
    lines = [f"{item.host:30} recorded {item.made:%Y-%m-%d %H:%M} UTC" for item in found]
    out("\n".join(lines) or "no recorded hosts")


@app.command("diff")
def diff(
    host: Host,
    configuration: Configuration = None,
    as_json: Json = False,
    detailed: Annotated[
        bool,
        typer.Option(
            "--detailed-exitcode",
            envvar="TESTBED_DETAILED_EXITCODE",
            help=f"exit with {int(Exit.CHANGES)} if something differs",
        ),
    ] = False,
) -> None:
    """Compare a host with its record; change nothing."""
    found = giving_back.compare(Record(state_root(), host), configuration).found
    if as_json:
        out_json([asdict(item) for item in found], indent=1)
    else:
        _show(host, found)
    if found and detailed:
        raise typer.Exit(Exit.CHANGES)


@app.command("restore")
def restore(host: Host, configuration: Configuration = None, yes: Consent = False) -> None:
    """Give a host back as it was recorded, and remove the record when nothing is left to do."""
    made = Record(state_root(), host)
    left = giving_back.give_back(made, configuration, partial(_agree, host, yes=yes), say)
    later = [item for item in left if item.kind == "module" and item.now == "loaded"]
    others = [item for item in left if item not in later]
    if later:
        names = " ".join(item.subject for item in later)
        out(f"in use, and loaded until the next boot of {line(host)}: {line(names)}")
    if others:
        _show(host, others)
        raise ProvisioningError(
            f"{host} is not all that it was",
            fact=f"{_counted(others)} differ",
            remedy=f"settle them on the host, and repeat the command; or run `testbed host forget {host}`",
        )
    with made.locked():
        made.remove()
    out(f"{line(host)} is as it was recorded; the record is removed")


@app.command("forget")
def forget(host: Host, yes: Consent = False) -> None:
    """Remove the record of a host, with all copies in it; the host stays as it is."""
    made = Record(state_root(), host)
    made.require()
    _ask(f"the record of {host}, by which it can be given back, would be removed", host, yes=yes)
    with made.locked():
        made.remove()
    out(f"the record of {line(host)} is removed")


def _agree(host: str, compared: Compared, *, yes: bool) -> None:
    """Ask before a host is changed.

    Raises:
        UsageError: the answer is no, or there is no terminal for a question.
    """
    _show(host, compared.found)
    _ask(
        f"{host} would be given back: {_counted([item for item in compared.found if item.step])}",
        host,
        yes=yes,
    )


def _ask(what: str, host: str, *, yes: bool) -> None:
    if yes:
        return
    remedy = f"look at `testbed host diff {host}`, then add --yes"
    if not attended():
        raise UsageError(what, fact="there is no terminal for a question", remedy=remedy)
    warn(what)
    if not agreed("Go on?"):
        raise UsageError(f"{host} was not changed", fact="the answer was no", remedy=remedy)


def _counted(found: Sequence[Difference]) -> str:
    counts = Counter(item.kind for item in found)
    return (
        ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in counts.items()) or "nothing"
    )


def _show(host: str, found: Sequence[Difference]) -> None:
    """Print differences for people."""
    if not found:
        out(f"{line(host)} is as it was recorded")
        return
    counts: Counter[str] = Counter()
    rows = []
    for item in found:
        counts[item.kind] += 1
        if counts[item.kind] <= _SHOWN:
            step = str(item.step) if item.step else f"left: {item.reason}"
            rows.append(
                (item.kind, *(line(text)[:60] for text in (item.subject, item.before, item.now)), step)
            )
    show([Line(text) for text in table(("kind", "subject", "recorded", "now", "to give it back"), rows)])
    for kind, count in counts.items():
        if count > _SHOWN:
            out(f"… and {count - _SHOWN} more of kind {kind}; `testbed host diff --json` prints all")
