"""The manager's view of systemd's units, with their drop-ins.

One call makes the manager print all that it has loaded. Properties of one unit after the other take it
several times as long, since it looks for the state of each unit's file in all folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import cache

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread, masked
from testbed.payload.inventory.host.processes import NUMBERS

_SECONDS = 40.0  # that one call may take
# A unit or job, a property that is not as usual (no limit is 2^64 - 1), a list of commands, a command.
_LINE = re.compile(
    r"^(?:→|->) (\w+ .*):$|"
    r"^\t([A-Z/][^\n:]*): (?!(?:no|n/a|18446744073709551615|)$)(.*)$|"
    r"^\t(?:→|->) (\w+):$|"
    r"^\t\tCommand Line: (.*)$",
    re.MULTILINE,
)
# What changes without an administrator: times, states of processes, counters, and results of conditions.
_CHANGING = re.compile(
    r".*(?:Timestamp|PID|Result|Errno|Error)|(?:Service|Socket|Timer|Path) State|(?:Main )?PID .*|"
    r"Status Text|Invocation ID|NotifyState|RestartSteps|NConnections|Accepted|Accept Socket|May GC|"
    r"Garbage Collection Mode|Bus Name Good|CGroup.*|CgroupPath|File Descriptor Store (?:Current|Entry.*)|"
    r"Instance|Found|.*Job.*|Device Node|Exit (?:Code|Status)|NotifySocket|Refs?.*"
)
# Words for people, the order of starts, and the other end of a line of another unit.
_BESIDE = re.compile(
    r"Description|Documentation|Before|After|Refer.*|RequiredBy|RequisiteOf|WantedBy|BoundBy|UpheldBy|"
    r"ConsistsOf|ConflictedBy|TriggeredBy|OnFailureOf|OnSuccessOf|SliceOf|InSlice|PropagatesReloadTo|"
    r"ReloadPropagatedFrom|PropagatesStopTo|StopPropagatedFrom|Following.*|.*MountsFor|Symlinks"
)
_SETS = (
    "SystemCallFilter",
    "SystemCallLog",
    "SystemCallArchitectures",
    "RestrictAddressFamilies",
    "RestrictNetworkInterfaces",
    "CapabilityBoundingSet",
    "DisableControllers",
)


# Folders of unit files, in the order of precedence (systemd.unit(5)).
_FOLDERS = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/run/systemd/generator.late",
)


def collect(records: Records) -> None:
    """Record every unit that the manager has loaded, and where files and links of units are."""
    parts = (
        ("unit", _loaded, ["systemd-analyze", "dump", "--no-pager"]),
        ("manager's environment", _environment, ["systemctl", "show-environment"]),
    )
    for domain, reader, argv in parts:
        try:
            reader(records, programs.run(argv, seconds=_SECONDS))
        except Unread as error:
            records.unread(domain, "", error)
    for name, places in files(_FOLDERS).items():
        records.add("unit file", NUMBERS.sub("N", name), sorted(places))


def _loaded(records: Records, printed: str) -> None:
    found = 0
    for name, told in described(printed):
        found += 1
        if not name.endswith(".device"):
            records.add("unit", name, told)
    if not found:
        raise Unread(f"the manager prints no units: {printed[:80]!r}")


def described(printed: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield each unit of a dump with its properties that an administrator decides about."""
    title, section = "", ""
    found: dict[str, list[str]] = {}
    for begun, key, value, commands, command in [*_LINE.findall(printed), ("end", *[""] * 4)]:
        if key:
            if not _beside(key):
                found.setdefault(key, []).append(value)
        elif begun:
            if title.startswith("Unit "):
                yield _plain(title.removeprefix("Unit ")), _properties(found)
            title, found = begun, {}
        elif commands:
            section = commands
        else:
            found.setdefault(section, []).append(command)


@cache
def _beside(key: str) -> bool:
    return bool(_CHANGING.fullmatch(key) or _BESIDE.fullmatch(key))


@cache
def _plain(text: str) -> str:
    """Return a text without secrets and without numbers of one start."""
    return NUMBERS.sub("N", masked(text))


def _properties(found: dict[str, list[str]]) -> dict[str, object]:
    told: dict[str, object] = {}
    for key, values in found.items():
        if key in _SETS:
            told[key] = sorted(" ".join(values).split())
            continue
        texts = [_plain(value) for value in values]
        if key.startswith(("Condition", "Assert")):  # the last word is the result
            texts = [text.rpartition(" ")[0] for text in texts]
        told[key] = texts[0] if len(texts) == 1 else texts if key.startswith("Exec") else sorted(texts)
    return told


def files(folders: Iterable[str]) -> dict[str, list[str]]:
    """Return for each unit where its files, drop-ins and links are.

    A link makes a unit enabled or masked. The manager takes ten times as long to say that of all files.
    """
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path, below, names in os.walk(folder):
            for name in [*names, *(name for name in below if os.path.islink(f"{path}/{name}"))]:
                place = f"{path}/{name}"
                target = os.readlink(place) if os.path.islink(place) else ""
                inner = path.rpartition("/")[2]
                unit = inner.removesuffix(".d") if inner.endswith(".d") and path != folder else name
                found.setdefault(unit, []).append(_plain(f"{place} -> {target}" if target else place))
    return found


def _environment(records: Records, printed: str) -> None:
    for line in printed.splitlines():
        records.add("manager's environment", masked(line)[:300])
