"""What verbs of the command line share: how a lab is named, found and entered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.shell import known_labs
from testbed.cli.terminal import warn
from testbed.drivers.host import memory
from testbed.drivers.host.ownership import require_trust
from testbed.drivers.host.workspace import Workspace, labs, state_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.errors import UsageError
from testbed.lab import session
from testbed.lab.breach_journal import Entry
from testbed.model.resolve import resolve
from testbed.model.topology import Testbed
from testbed.topology_file.loader import read
from testbed.untrusted.text import line

File = Annotated[
    str,
    typer.Argument(
        help="topology file, - for standard input, or the name of a lab", envvar="TESTBED_TOPOLOGY"
    ),
]
Name = Annotated[
    str,
    typer.Argument(
        help="name of a lab, or its topology file", envvar="TESTBED_LAB", autocompletion=known_labs
    ),
]


def topology_of(name: str | Path) -> tuple[Testbed, str]:
    """Return the topology that a file, or the copy of a lab of that name, describes, and its text.

    Raises:
        UsageError: there is neither.

    """
    file = _known(str(name)) or _file(str(name)) or Path(name)
    found = read(file, machine_memory=memory.total())
    return resolve(found.spec), found.text


def workspace_of(name: str | Path) -> Workspace:
    """Return the workspace of a lab, by its name or its topology file.

    Raises:
        UsageError: it is neither a possible name nor a file.
        MachineError: others can change what is in the state folder.

    """
    require_trust(state_root())
    file = None if _known(str(name)) else _file(str(name))
    return Workspace(state_root(), read(file).spec.name if file else str(name))


def _known(name: str) -> Path | None:
    """Return the topology that a lab of that name keeps, or None; it comes before a file of that name."""
    if name not in labs(state_root()):
        return None
    if _file(name):
        warn(f"{name} is the lab of that name; the file is ./{name}")
    return Workspace(state_root(), name).topology


def _file(text: str) -> Path | None:
    """Return the file that a word names, a pipe such as ``/dev/fd/63`` included, or None."""
    if text == "-":
        return Path(text)
    try:
        return Path(text) if Path(text).exists() and not Path(text).is_dir() else None
    except (ValueError, OSError):  # what no file can be called
        return None


def running_lab(name: str) -> tuple[Testbed, Workspace, lab_namespaces.Enclosure]:
    """Return a lab that runs.

    Raises:
        UsageError: there is no such lab, or it is down.

    """
    workspace = workspace_of(name)
    testbed = session.load_applied(workspace)
    found = lab_namespaces.find(testbed.name, workspace.root)
    if found is None:
        fact = "it has no running namespaces"
        raise UsageError(f"the lab {testbed.name} is down", fact=fact, remedy=f"run `testbed up {name}`")
    return testbed, workspace, found


def to_close(left: Sequence[Entry]) -> list[str]:
    """Return in words, a line for each, what `up` will close because a process was killed after it had opened
    it.
    """
    return [line(f"! close   {entry}") for entry in left]


@contextmanager
def entered(testbed: Testbed, workspace: Workspace, ground: session.Ground) -> Iterator[session.Lab]:
    """Lock a lab, enter its namespaces and build its drivers; afterwards this process stays inside."""
    with workspace.locked():
        taken = session.enter(testbed, workspace, ground.environment)
        with session.opened(testbed, workspace, ground, taken) as opened:
            yield opened
