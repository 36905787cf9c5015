"""Units of systemd: the manager's view of each, from which files it comes, and what is written there.

The files say more than the manager's properties: conditions, dependencies, and what a property was made from.
The properties say what is in force, whatever has become of the files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from testbed.payload.inventory.base.collect import Records, Unread, masked, read
from testbed.payload.inventory.host.manager import NAME, PATH, Manager, Properties
from testbed.payload.inventory.host.processes import NUMBERS

_UNIT = f"{NAME}.Unit"
_FILES = ("FragmentPath", "SourcePath", "DropInPaths")
_RUNNING = (".service", ".socket", ".timer", ".path")  # their state below comes and goes with their work
_PLAIN = (".target", ".device")  # they have no properties of their own
_CHANGED = "changed since the manager read them"
_LINES = 2_000  # of one unit
_TRANSIENT = "/run/systemd/transient/"  # the manager itself writes there
_UNLIMITED = 2**64 - 1
_EXACT = 2**53  # from here on, not every reader of JSON takes a whole number
# What changes without an administrator: times, states of processes, counters, and what follows from other
# limits. Commands are taken from the properties that have their flags too. Those of mounts follow from What,
# Where, Type and Options, and the manager forgets them when it is reloaded.
_CHANGING = re.compile(
    r".*Timestamp.*|(?:Main|Control)PID|.*Result|ExecMain.*|.*USec(?:Monotonic|Realtime|Next)|LastTriggerUSec|Effective.*|"
    r"Memory(?:Swap|ZSwap)?(?:Current|Peak|Available)|CPUUsageNSec|TasksCurrent|IP(?:In|E)gress.*|"
    r"IO(?:Read|Write)(?:Bytes|Operations)|ControlGroup(?:Id)?|NRestarts|Status.*|NFileDescriptorStore|"
    r"N(?:Connections|Accepted|Refused|CurrentlyActive)|FlushPending|[UG]ID|Exec(?:Mount|Unmount|Remount)"
)
_TWICE = re.compile(r"Exec(?:Condition|StartPre|Start|StartPost|Reload|Stop|StopPost)")
_CREDENTIAL = re.compile(r"(?m)^((?:SetCredential(?:Encrypted)?=[^:\n]*:|StandardInput(?:Text|Data)=)).*$")
_SETS = (
    "SystemCallFilter",
    "SystemCallLog",
    "SystemCallArchitectures",
    "RestrictAddressFamilies",
    "RestrictNetworkInterfaces",
    "RestrictFileSystems",
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
    try:
        with Manager() as manager:
            _loaded(records, manager)
    except (Unread, ValueError, TypeError) as error:
        records.unread("unit", "", error)
        records.unread("manager's environment", "", error)
    for name, places in files(_FOLDERS).items():
        records.add("unit file", NUMBERS.sub("N", name), sorted(places))


def _loaded(records: Records, manager: Manager) -> None:
    (environment, read_at) = manager.properties(
        [(PATH, f"{NAME}.Manager", name) for name in ("Environment", "UnitsLoadStartTimestamp")]
    )
    for line in environment:
        records.add("manager's environment", masked(line)[:300])
    units = [unit for unit in manager.units() if not unit[0].endswith(".device")]
    answers = iter(manager.properties([(unit[4], _UNIT, name) for unit in units for name in _FILES]))
    settings = _settings(manager, [(unit[0], unit[4]) for unit in units])
    for name, load, active, below, _ in units:
        fragment, source, drop_ins = (next(answers) for _ in _FILES)
        told = written([path for path in (fragment, source, *drop_ins) if path], read_at / 1_000_000)
        own = settings.get(name, {})
        # A service that runs to its end is active only while it runs, each time that something starts it.
        fleeting = own.get("Type") == "oneshot" and not own.get("RemainAfterExit") and active != "failed"
        states = [load] if fleeting else [load, active]
        states += [] if name.endswith(_RUNNING) else [below]
        records.add("unit", NUMBERS.sub("N", name), {**own, "states": " ".join(states), **told})


def _settings(manager: Manager, units: list[tuple[str, str]]) -> dict[str, dict[str, object]]:
    """Return the properties of units that have their own, by name; but for no, nothing and unlimited."""
    asked = [unit for unit in units if not unit[0].endswith(_PLAIN)]
    found: dict[str, dict[str, object]] = {}
    for kind in sorted({name.rpartition(".")[2] for name, _ in asked}):
        own = {name: path for name, path in asked if name.endswith(f".{kind}")}
        properties = Properties(_wanted if kind == "service" else _lasts, _shown)
        answers = manager.all_properties(list(own.values()), f"{NAME}.{kind.capitalize()}")
        for name, body in zip(own, answers, strict=True):
            found[name] = properties.read(body)
    return found


def _shown(name: str, value: Any) -> object:
    return None if _is_usual(value) else words(name, value)


def _is_usual(value: Any) -> bool:
    """Return whether a value is no, nothing or unlimited; a zero is none of them."""
    return value is False or value in ("", [], [False, ""], [False, []], _UNLIMITED)


@cache
def _lasts(name: str) -> bool:
    return not _CHANGING.fullmatch(name)


@cache
def _wanted(name: str) -> bool:
    return not _TWICE.fullmatch(name) and _lasts(name)


def words(name: str, value: Any) -> object:
    """Return a property without secrets and numbers of one start; a list of texts for a list of anything."""
    if isinstance(value, str):
        return _masked(value)
    if not isinstance(value, list):
        return value if abs(value) < _EXACT else f"{value:#x}"
    if name == "StandardInputData":
        return "(masked)"
    # A secret follows a credential's name; the last run follows a command's program, arguments and flags.
    shown = 1 if name.startswith("SetCredential") else 3 if name.startswith("Exec") else None
    texts = [
        _masked(item if isinstance(item, str) else " ".join(_flat(item[:shown] if shown else item)))
        for item in value
    ]
    return sorted(texts) if name in _SETS else texts


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield str(value)


def _masked(text: str) -> str:
    return NUMBERS.sub("N", masked(_CREDENTIAL.sub(r"\1(masked)", text)))


def written(paths: list[str], since: float) -> dict[str, list[str]]:
    """Return files of a unit, the lines in them that are no comments, and which have changed since a time."""
    lines: list[str] = []
    changed: list[str] = []
    named = [NUMBERS.sub("N", path) for path in paths]
    for path, name in zip(paths, named, strict=True):
        if path.startswith("/proc/"):
            continue  # the mounts themselves, from which the manager makes units
        try:
            text = read(path)
            seen = os.stat(path)  # that of a masked unit is /dev/null
            if seen.st_ctime > since and stat.S_ISREG(seen.st_mode) and not path.startswith(_TRANSIENT):
                changed.append(name)
        except (OSError, Unread) as error:
            text = f"unread: {name}: {error}"
        lines += [
            " ".join(line.split()) for line in text.splitlines() if line.strip()[:1] not in ("", "#", ";")
        ]
    lines[_LINES:] = [f"and {len(lines) - _LINES} more"] if len(lines) > _LINES else []
    plain = _masked("\n".join(lines))
    told = {"files": named, "lines": plain.split("\n") if plain else [], _CHANGED: changed}
    return {name: values for name, values in told.items() if values}


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
                found.setdefault(unit, []).append(
                    NUMBERS.sub("N", f"{place} -> {target}" if target else place)
                )
    return found
