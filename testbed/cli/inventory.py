"""The verbs that read machines: those of a lab, to compare them with a reading, and hosts of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.context import Name, running_lab
from testbed.cli.output.terminal import Json, fail, out, out_json, show
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.pki import Authority
from testbed.drivers.places.machine_inventory import digest_key, read_machines
from testbed.drivers.ssh.client import Host
from testbed.errors import Exit, TestbedError, UsageError
from testbed.hosts.controls import judge
from testbed.hosts.look import look
from testbed.inventory.allowed import load
from testbed.inventory.compare import Comparison, compare
from testbed.inventory.records import FORMAT, Inventory, parse
from testbed.lab import admin_login, session
from testbed.report.columns import Line, table
from testbed.report.result import Verdict
from testbed.untrusted import bounded_json
from testbed.untrusted.text import line

app = typer.Typer(rich_markup_mode=None)
_SHOWN = 200  # findings and unread places that the text form lists
_OCTETS = 256 * 2**20  # of a file to compare with


@app.command()
def inventory(
    name: Name,
    machines: Annotated[
        list[str] | None, typer.Argument(help="nodes, or controller; all if left out")
    ] = None,
    as_json: Json = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="output of an earlier `inventory --json`, to compare with",
            envvar="TESTBED_AGAINST",
        ),
    ] = None,
) -> None:
    """Read the whole state of machines, and print it or its changes since a reading."""
    wanted = None if against is None else _earlier(against)
    testbed, workspace, found = running_lab(name)
    names = [item.name for item in testbed.machines]
    for machine in machines or ():
        session.require_member("machine", machine, names)
    chosen = [item for item in testbed.machines if not machines or item.name in machines]
    if wanted is not None and (lacking := [item.name for item in chosen if item.name not in wanted]):
        fact = f"{against} has no records of {', '.join(lacking)}"
        raise UsageError(
            "there is nothing to compare with",
            fact=fact,
            remedy="name machines that it has, or read all of them again",
        )
    admin_login.renew(workspace, Authority(workspace.pki))
    lab_namespaces.enter(found)
    hosts = [Host(admin_login.access(workspace, item)) for item in chosen]
    try:
        seen = read_machines(hosts, {"key": digest_key(workspace.pki)})
    finally:
        for host in hosts:
            host.close()
    read = {machine: item for machine, item in seen.items() if isinstance(item, Inventory)}
    errors = {machine: item for machine, item in seen.items() if isinstance(item, TestbedError)}
    for error in errors.values():
        fail(error)
    if wanted is None:
        _print_records(testbed.name, read, errors, as_json=as_json)
        unfinished = errors or any(item.unfinished for item in read.values())
        raise typer.Exit(Exit.INCONCLUSIVE if unfinished else Exit.OK)
    allowed = load()
    compared = [compare(machine, item, wanted[machine], allowed) for machine, item in read.items()]
    _print_findings(testbed.name, compared, errors, as_json=as_json)
    if any(item.findings for item in compared):
        raise typer.Exit(Exit.FAIL)
    raise typer.Exit(Exit.INCONCLUSIVE if errors or any(item.unread for item in compared) else Exit.OK)


@app.command()
def audit(
    hosts: Annotated[
        list[str], typer.Argument(help="hosts as ssh takes them", metavar="HOST", show_default=False)
    ],
    configuration: Annotated[
        Path | None,
        typer.Option(
            "--ssh-config",
            "-F",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="configuration for ssh instead of your own",
            envvar="TESTBED_SSH_CONFIG",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at KVM hosts that others have set up, over ssh; change nothing on them."""
    found = [
        (
            item,
            judge(item.facts) if item.facts else [],
            line(f"{item.error.what}: {item.error.fact}") if item.error else "",
        )
        for item in look(hosts, configuration)
    ]
    if as_json:
        out_json(
            [
                {
                    "host": item.host,
                    "system": item.facts.system if item.facts else "",
                    "guests": len(item.facts.workers) if item.facts else 0,
                    "error": error,
                    "controls": [asdict(finding) for finding in findings],
                }
                for item, findings, error in found
            ],
            indent=1,
        )
    else:
        rows = [
            (line(item.host), finding.control, finding.verdict, line(finding.reason))
            for item, findings, _ in found
            for finding in findings
        ]
        rows += [(line(item.host), "", Verdict.INCONCLUSIVE, error) for item, _, error in found if error]
        show([Line(text) for text in table(("host", "control", "verdict", "reason"), sorted(rows))])
    verdicts = {finding.verdict for _, findings, _ in found for finding in findings}
    if Verdict.FAIL in verdicts:
        raise typer.Exit(Exit.FAIL)
    if Verdict.INCONCLUSIVE in verdicts or any(error for *_, error in found):
        raise typer.Exit(Exit.INCONCLUSIVE)


def _earlier(file: Path) -> dict[str, Inventory]:
    """Return the readings in a file.

    Its first line names the machines; each other line is a record.

    Raises:
        UsageError: it holds none.

    """
    remedy = "give the output of `testbed inventory LAB --json`"
    try:
        if file.stat().st_size > _OCTETS:
            raise ValueError(f"it is larger than {_OCTETS} octets")
        head, *lines = map(bounded_json.read, file.read_text(encoding="utf-8").split("\n")[:-1])
        if head.get("format") != FORMAT or len(lines) != head["records"]:
            raise ValueError("it is of another format, or not whole")
        records: dict[str, list[object]] = {str(machine): [] for machine in head["machines"]}
        for record in lines:
            records[record.pop("machine")].append(record)
        return {machine: parse(found) for machine, found in records.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} holds no inventory", fact=str(error) or type(error).__name__, remedy=remedy
        ) from error


def _print_records(
    name: str, read: Mapping[str, Inventory], errors: Mapping[str, TestbedError], *, as_json: bool
) -> None:
    if as_json:
        records = [{"machine": machine, **record} for machine, item in read.items() for record in item.data()]
        told = {machine: str(error) for machine, error in errors.items()}
        out_json(
            {"format": FORMAT, "lab": name, "machines": list(read), "records": len(records), "errors": told}
        )
        for record in records:
            out_json(record)
        return
    for machine, item in read.items():
        out(f"{machine}: {len(item.records)} records in {item.seconds:.1f} s")
        out("\n".join(f"  {count:6} {line(domain)}" for domain, count in item.domains().items()))
        out(
            "\n".join(
                _listed([f"  not read: {line(place)}: {line(why)}" for place, why in item.unread.items()])
            )
        )


def _print_findings(
    name: str, compared: Sequence[Comparison], errors: Mapping[str, TestbedError], *, as_json: bool
) -> None:
    findings = [finding for item in compared for finding in item.findings]
    unread = [text for item in compared for text in item.unread]
    allowed = sum((item.allowed for item in compared), Counter[str]())
    if as_json:
        out_json(
            {
                "format": FORMAT,
                "lab": name,
                "findings": [finding.data() for finding in findings],
                "unread": unread,
                "allowed": dict(allowed),
                "errors": {machine: str(error) for machine, error in errors.items()},
            }
        )
        return
    out("\n".join(_listed([line(finding) for finding in findings])))
    out("\n".join(_listed([f"not read: {line(text)}" for text in unread])))
    out(
        f"{len(findings)} findings; "
        f"{allowed.total()} differences are allowed by {len(allowed)} of {len(load())} lines; "
        f"{len(unread)} places could not be read"
    )


def _listed(lines: Sequence[str]) -> list[str]:
    return [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]
