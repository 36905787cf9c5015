"""The manager's view of systemd's units, with their drop-ins."""

from __future__ import annotations

import re

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread, masked

_KINDS = "service,socket,timer,path,mount,automount,target,scope,slice,swap"
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
_NAMES = re.compile(
    r"(?<=session-)\d+(?=\.scope)|(?<=machine-qemu\\x2d)\d+|(?<=run-u)\d+|(?<=run-r)[0-9a-f]{32}"
)
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
    shown = programs.run(
        ["systemctl", "show", "--all", "--no-pager", f"--property={','.join(_SHOWN)}", "*"], seconds=45
    )
    for block in shown.split("\n\n"):
        told = properties(block)
        name = str(told.pop("Id", ""))
        if name and not name.endswith(".device"):
            records.add("unit", _NAMES.sub("N", name), told)
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
            found.setdefault(name, []).append(_NAMES.sub("N", masked(text)))
    return {
        name: sorted(" ".join(values).split())
        if name in _WORDS
        else values[0]
        if len(values) == 1
        else values
        for name, values in found.items()
    }
