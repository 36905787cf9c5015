"""Writes the reference page of the command line from the typer program itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import typer

from testbed.cli.main import app
from testbed.errors import Exit

_EXITS: Mapping[Exit, str] = {
    Exit.OK: "every check passed, and every control was looked at or does not apply to this topology",
    Exit.FAIL: "a wall is open, or a check cannot fail",
    Exit.USAGE: "the topology file or the command line is wrong",
    Exit.INCONCLUSIVE: "nothing failed, but something was inconclusive, unproven or not looked at",
    Exit.NOT_CAPABLE: "this machine cannot do it; the message names the remedy",
    Exit.PROVISIONING: "provisioning did not finish, the tool failed, or a killed run left a breach in force",
    Exit.CHANGES: "`plan --detailed-exitcode` only: there is something to do",
    Exit.INTERRUPTED: "interrupted by Ctrl-C, SIGTERM or SIGHUP; an open wall was closed",
}


def page() -> str:
    """Return the page as Markdown."""
    root: Any = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        root.help,
        "",
        "Every option can also be set by the environment variable in the last column.",
        "`--help` prints the same facts.",
        "",
        "Errors have three parts: what failed, the fact observed, the remedy.",
        "",
        "| exit status | meaning |",
        "|---|---|",
        *(f"| {code.value} | {_EXITS[code]} |" for code in Exit),
        "",
        *(line for name, command in _commands("testbed", root) for line in _section(name, command)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _commands(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command below a group, in the order of the program, with its whole name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(f"{prefix} {name}", command)
        elif not command.hidden:
            yield f"{prefix} {name}", command


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [item for item in command.params if not _is_option(item)]
    options = [item for item in command.params if _is_option(item)]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *map(_argument, arguments)])
    yield from (f"## {name}", "", f"`{usage}`", "", _one_line(command.help), "")
    if command.params:
        yield from ("| argument or option | meaning | default | variable |", "|---|---|---|---|")
        for item in (*arguments, *options):
            word = f"`{_option(item)}`" if _is_option(item) else f"`{_argument(item)}`"
            cells = (_cell(word), _cell(item.help or ""), _cell(_default(item)), _variable(item))
            yield f"| {' | '.join(cells)} |"
        yield ""


def _is_option(item: Any) -> bool:
    return hasattr(item, "is_flag")


def _argument(item: Any) -> str:
    word = (item.metavar or item.name).upper() + ("..." if item.nargs == -1 else "")
    return word if item.required else f"[{word}]"


def _option(item: Any) -> str:
    words = ", ".join((*item.opts, *item.secondary_opts))
    if item.is_flag:
        return words
    value = item.metavar or item.name.upper()
    return f"{words}{value}" if value.startswith("[") else f"{words} {value}"


def _default(item: Any) -> str:
    if item.required:
        return "required"
    given = item.default
    if given in (None, "", False, []) or item.is_flag if _is_option(item) else given in (None, "", []):
        return ""
    return f"`{getattr(given, 'value', given)}`"


def _variable(item: Any) -> str:
    return f"`{item.envvar}`" if item.envvar else ""


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())
