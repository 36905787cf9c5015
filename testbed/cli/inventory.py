"""The verb that reads whole machines of a lab, and compares them with a reading or a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.context import Name, running_lab
from testbed.cli.machines import readings
from testbed.cli.machines.readings import Reading
from testbed.cli.output.terminal import Json, fail
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.pki import Authority
from testbed.drivers.places.machine_inventory import digest_key, read_machines
from testbed.drivers.ssh.client import Host
from testbed.errors import Exit, TestbedError, UsageError
from testbed.inventory import surface
from testbed.inventory.allowed import load
from testbed.inventory.compare import compare
from testbed.inventory.records import FORMAT, Inventory, parse
from testbed.lab import admin_login, session
from testbed.untrusted import bounded_json

app = typer.Typer(rich_markup_mode=None)
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
    as_surface: Annotated[
        bool,
        typer.Option(
            "--surface",
            help="print the attack surface instead; fail if its baseline lacks a part",
            envvar="TESTBED_SURFACE",
        ),
    ] = False,
) -> None:
    """Read the whole state of machines; print it, its changes since a reading, or the attack surface."""
    if against is not None and as_surface:
        raise UsageError(
            "--surface and --against exclude each other",
            fact="a surface is compared with its baseline",
            remedy="use one of them",
        )
    if against is not None:
        wanted = _earlier(against)
        found = _read(name, machines or (), known=(against, wanted))
        allowed = load()
        compared = [compare(item.name, seen, wanted[item.name], allowed) for item, seen in found.read.items()]
        readings.print_findings(found, compared, as_json=as_json)
        failed, unsure = any(item.findings for item in compared), any(item.unread for item in compared)
    else:
        found = _read(name, machines or ())
        failed, unsure = False, any(seen.unfinished for seen in found.read.values())
        if as_surface:
            surfaces = {
                item: surface.surface(seen, found.topology, item) for item, seen in found.read.items()
            }
            failed = bool(readings.print_surfaces(found, surfaces, as_json=as_json))
        else:
            readings.print_records(found, as_json=as_json)
    raise typer.Exit(Exit.FAIL if failed else Exit.INCONCLUSIVE if unsure or found.errors else Exit.OK)


def _read(
    name: str, machines: Sequence[str], known: tuple[Path, Mapping[str, Inventory]] | None = None
) -> Reading:
    """Read machines of a running lab, all if none is named; an error of one is told and kept.

    Args:
        known: a file and the earlier readings in it, which must have all of them.

    Raises:
        UsageError: a machine does not exist, or has no earlier reading.

    """
    topology, workspace, running = running_lab(name)
    names = [item.name for item in topology.machines]
    for machine in machines:
        session.require_member("machine", machine, names)
    chosen = [item for item in topology.machines if not machines or item.name in machines]
    if known is not None and (lacking := [item.name for item in chosen if item.name not in known[1]]):
        raise UsageError(
            "there is nothing to compare with",
            fact=f"{known[0]} has no records of {', '.join(lacking)}",
            remedy="name machines that it has, or read all of them again",
        )
    admin_login.renew(workspace, Authority(workspace.pki))
    lab_namespaces.enter(running)
    hosts = [Host(admin_login.access(workspace, item)) for item in chosen]
    try:
        seen = read_machines(hosts, {"key": digest_key(workspace.pki)})
    finally:
        for host in hosts:
            host.close()
    errors = {machine: item for machine, item in seen.items() if isinstance(item, TestbedError)}
    for error in errors.values():
        fail(error)
    read = {item: found for item in chosen if isinstance(found := seen[item.name], Inventory)}
    return Reading(topology, read, errors)


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
