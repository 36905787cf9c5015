"""The verbs that look into a lab and change nothing."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import Annotated

import typer

from testbed.cli.context import Name, entered, running_lab, to_close, workspace_of
from testbed.cli.invocation.shell import known_consoles, known_guests, known_labs, known_machines
from testbed.cli.output.terminal import Json, out, out_json, pass_on
from testbed.drivers.host.workspace import Workspace, labs, state_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.pki import Authority
from testbed.drivers.ssh.client import Host
from testbed.engine import observe
from testbed.errors import InstrumentError, UsageError
from testbed.lab import admin_login, build_inputs, session
from testbed.lab.breach_journal import Journal
from testbed.model.topology import Machine
from testbed.plan import render
from testbed.plan.diff import diff
from testbed.plan.resources import Kind
from testbed.untrusted.text import line, passed_on
from testbed.verify.guest_agent import run_in_guest

app = typer.Typer(rich_markup_mode=None)
_SHOWN = 200_000  # octets of a console
_LOGGED = 2_000_000  # octets of a journal


@app.command()
def status(
    name: Annotated[
        str,
        typer.Argument(
            help="name of a lab; all labs if left out", envvar="TESTBED_LAB", autocompletion=known_labs
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """List labs, or what exists of one."""
    if not name:
        running = {found.lab for found in lab_namespaces.enclosures(state_root())}
        rows = [{"lab": item, "running": item in running} for item in sorted({*labs(state_root()), *running})]
        if as_json:
            out_json(rows)
        else:
            out("\n".join(f"{r['lab']}  {'running' if r['running'] else 'down'}" for r in rows) or "no labs")
        return
    workspace = workspace_of(name)
    topology = session.load_applied(workspace)
    if lab_namespaces.find(topology.name, workspace.root) is None:
        left = Journal(workspace).entries()
        if as_json:
            out_json({"lab": topology.name, "running": False, "breaches": [entry.data() for entry in left]})
        else:
            out("\n".join((f"{topology.name} is down", *to_close(left))))
        return
    with entered(topology, workspace, build_inputs.load_inputs()) as opened:
        found, unseen = observe.observe(opened.desired, opened.places)
        drift, left = diff(opened.desired, found, unseen), Journal(workspace).entries()
    rows = [
        {"place": k.place, "kind": k.kind, "name": k.name, "state": p["state"]}
        for k, p in sorted(found.items())
        if "state" in p
    ]
    if as_json:
        breaches = [entry.data() for entry in left]
        out_json(
            {
                "lab": topology.name,
                "running": True,
                "objects": rows,
                "drift": render.data(drift)["actions"],
                "breaches": breaches,
            },
            indent=1,
        )
        return
    for row in rows:
        out(f"{row['place']:12} {row['kind']:8} {line(row['name']):16} {line(row['state'])}")
    counts = {kind: sum(1 for key in found if key.kind is kind) for kind in Kind}
    out(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    out("\n".join((*to_close(left), render.text(drift) if drift else "no drift")))


@app.command()
def ssh(
    name: Name,
    machine: Annotated[str, typer.Argument(help="a node, or controller", autocompletion=known_machines)],
    command: Annotated[list[str] | None, typer.Argument(help="command; a shell if left out")] = None,
) -> None:
    """Log in to a machine as its administrator.

    Its output is not changed: a terminal or a CI system may obey it.
    """
    workspace, _ = _admitted(name, machine)
    program = shutil.which("ssh")
    if program is None:
        raise UsageError(
            "ssh is missing", fact="it is nowhere in PATH", remedy="install the Debian package openssh-client"
        )
    os.execv(program, ["ssh", "-F", str(workspace.ssh_config), machine, "--", *(command or [])])  # noqa: S606


@app.command("exec")
def execute(
    name: Name,
    guest: Annotated[str, typer.Argument(help="a guest, as tenant/guest", autocompletion=known_guests)],
    command: Annotated[list[str], typer.Argument(help="program with its arguments")],
    timeout: Annotated[float, typer.Option(help="seconds", envvar="TESTBED_TIMEOUT")] = 60,
) -> None:
    """Run a program in a guest through its agent.

    Output that a terminal or a CI system would obey is replaced.
    """
    topology, workspace, _ = running_lab(name)
    guests = {item.label: item for item in topology.guests}
    session.require_member("guest", guest, list(guests))
    with entered(topology, workspace, build_inputs.load_inputs()) as opened:
        found = guests[guest]
        done = run_in_guest(opened.nodes[found.node], found, command, b"", timeout)
    pass_on(done.stdout, done.stderr)
    raise typer.Exit(done.status)


@app.command()
def console(
    name: Name,
    machine: Annotated[
        str,
        typer.Argument(help="a node, controller, or a guest as tenant/guest", autocompletion=known_consoles),
    ],
    lines: Annotated[int, typer.Option(help="lines to show", envvar="TESTBED_LINES")] = 100,
) -> None:
    """Show what a machine or a guest wrote to its serial console."""
    text = _guests_console(name, machine) if "/" in machine else _machines_console(name, machine)
    out("\n".join(passed_on(text).splitlines()[-lines:]))


def _machines_console(name: str, machine: str) -> bytes:
    workspace = workspace_of(name)
    session.require_member(
        "machine", machine, [item.name for item in session.load_applied(workspace).machines]
    )
    file = workspace.machine(machine) / "console.log"
    if not file.exists():
        raise UsageError(
            f"{machine} has no console", fact=f"{file} does not exist", remedy="run `testbed status`"
        )
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _SHOWN))
        return stream.read(_SHOWN)


def _guests_console(name: str, label: str) -> bytes:
    topology, workspace, _ = running_lab(name)
    guests = {item.label: item for item in topology.guests}
    session.require_member("guest", label, list(guests))
    with entered(topology, workspace, build_inputs.load_inputs()) as opened:
        return opened.nodes[guests[label].node].console(guests[label], _SHOWN)


@app.command()
def logs(
    name: Name,
    machine: Annotated[str, typer.Argument(help="a node, or controller", autocompletion=known_machines)],
    unit: Annotated[str, typer.Option(help="only this systemd unit", envvar="TESTBED_UNIT")] = "",
    lines: Annotated[int, typer.Option(help="lines to show", envvar="TESTBED_LINES")] = 100,
) -> None:  # fmt: skip
    """Show a machine's journal."""
    words = ["journalctl", "--no-pager", f"--lines={lines}", *([f"--unit={unit}"] if unit else [])]
    workspace, member = _admitted(name, machine)
    host = Host(admin_login.access(workspace, member))
    try:
        done = host.sudo(f"{shlex.join(words)} | tail -c {_LOGGED}")
    finally:
        host.close()
    if done.stderr and not done.stdout:
        fact = f"status {done.status}: {done.stderr[-800:].decode(errors='replace')}"
        raise InstrumentError(
            f"the journal of {machine} cannot be read", fact=fact, remedy="look at it with `testbed ssh`"
        )
    pass_on(done.stdout, done.stderr)


def _admitted(name: str, machine: str) -> tuple[Workspace, Machine]:
    """Enter a lab without its lock, and return its workspace and the machine.

    A certificate for its machines is renewed before.
    """
    topology, workspace, found = running_lab(name)
    session.require_member("machine", machine, [item.name for item in topology.machines])
    admin_login.renew(workspace, Authority(workspace.pki))
    lab_namespaces.enter(found)
    return workspace, topology.machine(machine)
