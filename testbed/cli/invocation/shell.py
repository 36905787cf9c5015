"""The words of a command line: their order, their completion, and verbs of other tools."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from testbed.cli.invocation.error_exit import accident
from testbed.drivers.host.workspace import Workspace, cache_root, labs, state_root
from testbed.drivers.snapshots import checkpoint as checkpoints
from testbed.errors import UsageError
from testbed.lab import session
from testbed.model.topology import Topology
from testbed.plan.controls import SEVERITY
from testbed.topology_file.schema import is_name

_COMMANDS_BEGIN = {"ssh": 2, "exec": 2}  # verbs that end with a foreign command: words of ours before it
_VALUED = {"--timeout"}  # options of these verbs that take a value
_LOUDNESS = ("-q", "--quiet", "-v", "--verbose")
_ELSEWHERE = {
    "deploy": "up", "apply": "up", "create": "up", "start": "up", "launch": "up", "converge": "up",
    "restart": "up",
    "destroy": "down", "delete": "down", "remove": "down", "rm": "down", "stop": "down", "halt": "down",
    "clean": "prune",
    "list": "status", "ls": "status", "ps": "status", "inspect": "status", "show": "status", "info": "status",
    "get": "status",
    "test": "check", "verify": "check", "shell": "ssh", "connect": "ssh", "login": "ssh", "attach": "console",
    "log": "logs",
    "save": "checkpoint save", "snapshot": "checkpoint save", "restore": "checkpoint restore",
    "lint": "validate", "diff": "plan",
    "build": "image bake", "images": "image list", "bake": "image bake", "draw": "graph",
    "version": "--version", "help": "--help",
}  # fmt: skip


class Verbs(TyperGroup):
    """The verbs of the command line; one that another tool has leads to ours."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer keeps the types of its contexts to itself
        """Run a verb, and hide errors of the system from typer.

        It would end with 1 for a broken pipe.
        """
        try:
            return super().invoke(ctx)
        except (OSError, MemoryError) as error:
            raise accident(error) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:  # noqa: ANN401
        """Return the verb that is meant.

        Raises:
            UsageError: only another tool has it; the remedy names ours.

        """
        word = args[0] if args else ""
        if word in _ELSEWHERE and word not in self.commands and ctx.parent is None:
            raise UsageError(
                f"there is no verb {word}",
                fact="other tools have it",
                remedy=f"use `testbed {_ELSEWHERE[word]}`",
            )
        return super().resolve_command(ctx, args)


def arranged(words: Sequence[str]) -> list[str]:
    """Return the words of a command line as typer expects them.

    The command at the end of `ssh` and `exec` needs no ``--`` before it, -q and -v stand anywhere, and
    --prove needs no value.
    """
    end = _own(words)
    own, rest = list(words[:end]), list(words[end:])
    first = [word for word in own if word in _LOUDNESS]
    own = [f"{word}=all" if word == "--prove" else word for word in own if word not in _LOUDNESS]
    return [*first, *own, *(["--"] if rest and rest[0] != "--" else []), *rest]


def _own(words: Sequence[str]) -> int:
    """Return how many words are ours, and not part of a command at the end."""
    end = words.index("--") if "--" in words else len(words)
    verb, count, value = "", 0, False
    for at, word in enumerate(words[:end]):
        if value:
            value = False
        elif word.startswith("-") and word != "-":
            value = word in _VALUED
        elif not verb:
            verb = word
        elif count == _COMMANDS_BEGIN.get(verb, end):
            return at
        else:
            count += 1
    return end


def _quiet(found: Callable[[], Iterable[str]]) -> list[str]:
    """Return words for a shell to complete; a completion never fails, and prints nothing."""
    with contextlib.suppress(Exception):
        return list(found())
    return []


def known_labs() -> list[str]:
    """Return the names of labs."""
    return _quiet(lambda: labs(state_root()))


def _lab(context: typer.Context) -> Topology:
    name = str(context.params.get("name") or "")
    return session.load_applied(Workspace(state_root(), name if is_name(name) else Path(name).stem))


def known_machines(context: typer.Context) -> list[str]:
    """Return the names of a lab's machines."""
    return _quiet(lambda: [machine.name for machine in _lab(context).machines])


def known_guests(context: typer.Context) -> list[str]:
    """Return the labels of a lab's guests."""
    return _quiet(lambda: [guest.label for guest in _lab(context).guests])


def known_consoles(context: typer.Context) -> list[str]:
    """Return the names of all machines and guests: they have consoles."""
    return [*known_machines(context), *known_guests(context)]


def known_controls() -> list[str]:
    """Return the ids of controls."""
    return sorted(SEVERITY)


def known_checkpoints() -> list[str]:
    """Return the names of checkpoints."""
    return _quiet(lambda: [item.name for item in checkpoints.stored(cache_root())])
