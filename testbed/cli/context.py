"""Functions that the verbs share: how a lab is named, found and entered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.cli.invocation.shell import known_labs
from testbed.cli.output.terminal import say, warn
from testbed.drivers.host import memory
from testbed.drivers.host.ownership import require_trust
from testbed.drivers.host.workspace import Workspace, labs, state_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.errors import UsageError
from testbed.lab import build_inputs, session
from testbed.lab.breach_journal import Entry
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.topology_file.loader import ParsedFile, read
from testbed.topology_file.schema import Spec
from testbed.untrusted.text import line

File = Annotated[
    str,
    typer.Argument(
        metavar="topology",
        help="topology file, - for standard input, or the name of a lab",
        envvar="TESTBED_TOPOLOGY",
    ),
]
Name = Annotated[
    str,
    typer.Argument(
        help="name of a lab, or its topology file", envvar="TESTBED_LAB", autocompletion=known_labs
    ),
]


def topology_of(name: str | Path) -> tuple[Topology, str]:
    """Return the topology of a file, or of the lab of that name, and its text.

    Names have the numbers that the lab has given to them.

    Raises:
        UsageError: there is neither.
        ProvisioningError: the lab's numbers cannot be read.

    """
    spec, text = spec_of(name)
    return resolve(spec, session.given_numbers(Workspace(state_root(), spec.name))), text


def spec_of(name: str | Path) -> tuple[Spec, str]:
    """Return the content of a topology file, or of the copy of a lab of that name, and its text.

    Raises:
        UsageError: there is neither.

    """
    file = _known(str(name)) or _file(str(name)) or Path(name)
    found = read(file, machine_memory=memory.total())
    return found.spec, found.text


def folder_of(name: str | Path) -> Path | None:
    """Return the folder of a topology file, or None for the name of a lab."""
    return None if str(name) in labs(state_root()) else (_file(str(name)) or Path(name)).parent


def workspace_of(name: str | Path) -> Workspace:
    """Return the workspace of a lab, by its name or its topology file.

    Raises:
        UsageError: it is neither a possible name nor a file.
        MachineError: others can change what is in the state folder.

    """
    require_trust(state_root())
    file = None if _known(str(name)) else _file(str(name))
    return Workspace(state_root(), read(file).spec.name if file else str(name))


def located(name: str, workspace: Workspace, data: Mapping[str, Any]) -> ParsedFile | None:
    """Return the topology whose lines a result points to, or None if there is no file of it.

    A file below the current folder is named relative to it, as forges name files of a repository.

    Args:
        name: a lab's name or a file, as the user gave it.
        data: content of ``result.json``.

    """
    given = None if name == "-" or _known(name) else _file(name)  # a pipe has been read, and is empty now
    file = (given if given and given.is_file() else None) or (
        workspace.topology_file if workspace.topology_file.is_file() else None
    )
    if file is None:
        say("the lab is down: name its topology file instead of the lab, and the results have lines")
        return None
    found = read(file)
    if resolve(found.spec, session.given_numbers(workspace)).digest != data["lab"]["topology_digest"]:
        say(f"{file} has changed since the run: lines may be wrong")
    here, there = Path.cwd().resolve(), file.resolve()
    below = there.is_relative_to(here)
    return replace(found, file=there.relative_to(here).as_posix() if below else there.as_uri())


def _known(name: str) -> Path | None:
    """Return the stored topology of the lab with this name, or None.

    A lab takes precedence over a file of that name.
    """
    if name not in labs(state_root()):
        return None
    if _file(name):
        warn(f"{name} is the lab of that name; the file is ./{name}")
    return Workspace(state_root(), name).topology_file


def _file(text: str) -> Path | None:
    """Return the file with this path, or None; a pipe such as ``/dev/fd/63`` is one."""
    if text == "-":
        return Path(text)
    try:
        return Path(text) if Path(text).exists() and not Path(text).is_dir() else None
    except (ValueError, OSError):  # not a valid name of a file
        return None


def running_lab(name: str) -> tuple[Topology, Workspace, lab_namespaces.Enclosure]:
    """Return a lab that runs.

    Raises:
        UsageError: there is no such lab, or it is down.

    """
    workspace = workspace_of(name)
    topology = session.load_applied(workspace)
    found = lab_namespaces.find(topology.name, workspace.root)
    if found is None:
        fact = "it has no running namespaces"
        raise UsageError(f"the lab {topology.name} is down", fact=fact, remedy=f"run `testbed up {name}`")
    return topology, workspace, found


def to_close(left: Sequence[Entry]) -> list[str]:
    """Return the breaches that `up` will close, in words, one a line.

    A process that opened them was killed before it closed them.
    """
    return [line(f"! close   {entry}") for entry in left]


@contextmanager
def entered(
    topology: Topology, workspace: Workspace, inputs: build_inputs.BuildInputs
) -> Iterator[session.Lab]:
    """Lock a lab, enter its namespaces and build its drivers.

    The process stays in the namespaces afterwards.
    """
    with workspace.locked():
        taken = session.enter(topology, workspace, inputs.environment)
        with session.open_lab(topology, workspace, inputs, taken) as opened:
            yield opened
