"""The manager's view of systemd's units, with their drop-ins."""

from __future__ import annotations

import re

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread, masked
from testbed.payload.inventory.host.processes import NUMBERS

_DESCRIBED = (".service", ".socket", ".timer", ".path")  # a description costs the manager its time
_SHOWN = (
    "Id",
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "FragmentPath",
    "SourcePath",
    "DropInPaths",
    "NeedDaemonReload",
    "Transient",
    "ExecStart",
    "ExecStartPre",
    "ExecStartPost",
    "ExecReload",
    "ExecStop",
    "ExecStopPost",
    "ExecCondition",
    "User",
    "Group",
    "SupplementaryGroups",
    "DynamicUser",
    "Environment",
    "EnvironmentFiles",
    "PassEnvironment",
    "LoadCredential",
    "SetCredential",
    "RootDirectory",
    "RootImage",
    "BindPaths",
    "Listen",
    "SocketUser",
    "SocketGroup",
    "SocketMode",
    "Accept",
    "Triggers",
    "TimersCalendar",
    "TimersMonotonic",
    "Paths",
    "What",
    "Where",
    "Type",
    "Options",
    "NoNewPrivileges",
    "CapabilityBoundingSet",
    "AmbientCapabilities",
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateNetwork",
    "SystemCallFilter",
    "AppArmorProfile",
    "NetworkNamespacePath",
    "Restart",
    "Requires",
    "Wants",
    "Conflicts",
    "OnFailure",
    "OnSuccess",
)
_RUN = re.compile(r"\s*; (?:start_time|stop_time|pid|code|status)=[^;}]*?(?=\s*[;}])")
_NEXT = re.compile(r"\s*; next_elapse=[^;}]*?(?=\s*[;}])")
_WORDS = (
    "Requires",
    "Wants",
    "Conflicts",
    "SystemCallFilter",
    "DropInPaths",
    "Environment",
    "CapabilityBoundingSet",
)


def collect(records: Records) -> None:
    """Record every unit that the manager has loaded, and the state of every unit file."""
    shown = []
    listed = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--full"]
    for words in map(str.split, programs.run(listed, seconds=30).splitlines()):
        name, states = words[0], words[1:4]
        if name.endswith(_DESCRIBED) and states[0] == "loaded":
            shown.append(name)
        elif not name.endswith(".device"):
            records.add("unit", NUMBERS.sub("N", name), {"states": " ".join(states)})
    show = ["systemctl", "show", "--no-pager", f"--property={','.join(_SHOWN)}", *shown]
    try:
        for block in programs.run(show, seconds=45).split("\n\n") if shown else []:
            found = properties(block)
            records.add("unit", NUMBERS.sub("N", str(found.pop("Id", "?"))), found)
    except Unread as error:
        records.unread("unit", "descriptions", error)
    for line in programs.run(
        ["systemctl", "list-unit-files", "--no-legend", "--no-pager", "--plain"], seconds=20
    ).splitlines():
        words = line.split()
        if len(words) > 1:
            records.add("unit file", words[0], words[1])
    try:
        environment = programs.run(["systemctl", "show-environment"])
        for line in environment.splitlines():
            records.add("manager's environment", masked(line)[:300])
    except Unread as error:
        records.unread("manager's environment", "", error)


def properties(block: str) -> dict[str, object]:
    """Return the properties of a unit that are not empty, with all values of each."""
    found: dict[str, list[str]] = {}
    for line in block.splitlines():
        name, _, value = line.partition("=")
        if value and value not in ("no", "[not set]"):
            text = _NEXT.sub("", _RUN.sub("", value)) if name.startswith(("Exec", "Timers")) else value
            found.setdefault(name, []).append(NUMBERS.sub("N", masked(text)))
    return {
        name: sorted(" ".join(values).split())
        if name in _WORDS
        else values[0]
        if len(values) == 1
        else values
        for name, values in found.items()
    }
