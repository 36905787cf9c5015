"""The verbs that remove: `down` for labs, `prune` for remains."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from testbed.cli.context import workspace_of
from testbed.cli.invocation.shell import known_labs
from testbed.cli.output.terminal import out, warn
from testbed.drivers.host.ownership import lab_mark, marked, require_trust
from testbed.drivers.host.workspace import Workspace, labs, state_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.errors import ProvisioningError, TestbedError, UsageError
from testbed.lab import session
from testbed.topology_file.schema import is_name


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
