"""What verbs of the command line share: how a lab is named, found and entered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from testbed import lab
from testbed.drivers import enclosure, memory
from testbed.drivers.journal import Entry
from testbed.drivers.workspace import Workspace, state_root
from testbed.errors import UsageError
from testbed.foreign.text import line
from testbed.model.resolve import resolve
from testbed.model.testbed import Testbed
from testbed.spec.load import read

File = Annotated[Path, typer.Argument(help="topology file, or the name of a lab", envvar="TESTBED_TOPOLOGY")]
Name = Annotated[str, typer.Argument(help="name of a lab, or its topology file", envvar="TESTBED_LAB")]


def topology_of(name: str | Path) -> tuple[Testbed, Path]:
    """Return the topology that a file, or the copy of a lab of that name, describes."""
    file = Path(name)
    copy = Workspace(state_root(), str(name)).topology if "/" not in str(name) else None
    if not file.is_file() and copy is not None and copy.is_file():
        file = copy
    return resolve(read(file, machine_memory=memory.total()).spec), file


def workspace_of(name: str | Path) -> Workspace:
    """Return the workspace of a lab, by its name or its topology file."""
    if Path(name).is_file():
        return Workspace(state_root(), read(Path(name)).spec.name)
    return Workspace(state_root(), str(name))


def running_lab(name: str) -> tuple[Testbed, Workspace, enclosure.Enclosure]:
    """Return a lab that runs.

    Raises:
        UsageError: there is no such lab, or it is down.

    """
    workspace = workspace_of(name)
    testbed = lab.load_applied(workspace)
    found = enclosure.find(testbed.name, workspace.root)
    if found is None:
        fact = "it has no running namespaces"
        raise UsageError(f"the lab {testbed.name} is down", fact=fact, remedy=f"run `testbed up {name}`")
    return testbed, workspace, found


def to_close(left: Sequence[Entry]) -> list[str]:
    """Return in words, a line for each, what `up` will close because a process was killed after it had opened it."""
    return [line(f"! close   {entry}") for entry in left]


@contextmanager
def entered(testbed: Testbed, workspace: Workspace, ground: lab.Ground) -> Iterator[lab.Lab]:
    """Lock a lab, enter its namespaces and build its drivers; afterwards this process stays inside."""
    with workspace.locked():
        taken = lab.enter(testbed, workspace, ground.environment)
        with lab.opened(testbed, workspace, ground, taken) as opened:
            yield opened
