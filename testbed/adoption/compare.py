"""The differences between two states of a host, and the step that takes each of them back. Pure.

A difference without a step is left to the host's owner, with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from testbed.adoption.scope import MADE_BY_ROLES, OWN_LINKS, OWN_TABLES, Scope
from testbed.adoption.state import Entry, HostState, Unit

_KERNEL = re.compile(r"(linux-(image|modules|headers|kbuild)|kernel)-?.*")
_NEVER_DELETED = ("/boot/",)
# They come and go with sessions, requests and devices, not with a change of the host.
_LIVELY = re.compile(
    r"(user|user-runtime-dir|getty|serial-getty|systemd-fsck|modprobe)@.*|(run|proc|sys|dev)-.*\.mount|"
    r"systemd-(hostnamed|timedated|localed|machined|importd|portabled|update-done|tmpfiles-.*)\.service|"
    r"(packagekit|polkit|apt-daily.*|man-db|dpkg-db-backup|logrotate|e2scrub.*|fstrim)\.service"
)
# To stop one of them can end the only way to the host.
_GUARDED = re.compile(
    r"(dbus(-broker)?|ssh|sshd|networking|NetworkManager|wpa_supplicant|systemd-(journald|logind|networkd|resolved|"
    r"udevd))\.(service|socket)|-\.mount"
)
_SETTLED = ("active", "inactive", "failed")


class Step(StrEnum):
    """A step that takes a difference back."""

    PURGE = "purge"
    INSTALL = "install"
    DELETE = "delete"
    WRITE = "write"
    MODE = "set mode and owner"
    STOP = "stop"
    START = "start"
    SET = "set"
    LOAD = "load"
    UNLOAD = "unload"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference.

    Args:
        kind: of the subject, such as "file".
        subject: its name; untrusted.
        before: what was recorded.
        now: what is seen.
        step: takes it back; None if that is left to the host's owner.
        reason: why there is no step.
    """

    kind: str
    subject: str
    before: str
    now: str
    step: Step | None = None
    reason: str = ""


def differences(before: HostState, now: HostState) -> list[Difference]:
    """Return all differences, in the order in which they are taken back."""
    return [
        *_units(before.units, now.units),
        *_links(before.links, now.links),
        *_packages(before.packages, now.packages),
        *_files(before.files, now.files, before.scope),
        *_tables(tables(before.rules), tables(now.rules)),
        *_sysctls(before.sysctls, now.sysctls),
        *_modules(before.modules, now.modules),
        *_command_line(before.machine, now.machine),
    ]


def same_host(before: HostState, now: HostState) -> bool:
    """Return whether two states can be of one host: by its board's id and network hardware."""

    def cards(state: HostState) -> set[str]:
        return {text for text in state.links.values() if text.endswith(" hardware")}

    boards = [state.machine.get("board", "") for state in (before, now)]
    known = all(board.strip("0-") for board in boards)
    shared = cards(before) & cards(now) or not (cards(before) and cards(now))
    return bool(shared) and (not known or boards[0] == boards[1])


def restarted(before: HostState, now: HostState, settled: Mapping[str, str]) -> list[str]:
    """Return units that have read their files after the record; they must start again with those given back.

    Args:
        settled: run of each unit that a restore has started again already.
    """
    if before.machine.get("boot") != now.machine.get("boot"):
        return []  # every unit has started again since; only another boot gives all of them back
    return sorted(
        name
        for name, unit in now.units.items()
        if name.endswith(".service")
        and name in before.units
        and not _LIVELY.fullmatch(name)
        and name != "dbus.service"
        and unit.active == before.units[name].active == "active"
        and unit.sub == "running"
        and unit.run not in (before.units[name].run, settled.get(name))
    )


def _units(before: Mapping[str, Unit], now: Mapping[str, Unit]) -> Iterator[Difference]:
    gone = Unit("inactive", "dead", "")
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name, gone), now.get(name, gone)
        if _LIVELY.fullmatch(name) or not {was.active, is_.active} <= set(_SETTLED):
            continue
        if (was.active == "active") == (is_.active == "active"):
            continue
        step = Step.START if was.active == "active" else Step.STOP
        guarded = step is Step.STOP and _GUARDED.fullmatch(name) is not None
        reason = "to stop it can end the way to the host" if guarded else ""
        yield Difference("unit", name, was.active, is_.active, None if guarded else step, reason)


def _links(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Difference]:
    for name in OWN_LINKS:
        if name in now and name not in before:
            yield Difference("link", name, "absent", "present", Step.REMOVE)
    for name, what in before.items():
        if name not in now and what.endswith(" hardware"):
            yield Difference("link", name, "present", "absent", reason="hardware, or renamed")


def _packages(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Difference]:
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name, "absent"), now.get(name, "absent")
        if was == is_:
            continue
        if was == "absent" and _KERNEL.fullmatch(name):
            yield Difference("package", name, was, is_, reason="a kernel; the host may run it")
        elif was == "absent":
            yield Difference("package", name, was, is_, Step.PURGE)
        elif is_ == "absent":
            yield Difference("package", name, was, is_, Step.INSTALL)
        else:
            yield Difference("package", name, was, is_, reason="archives seldom keep earlier versions")


def _below(path: str, trees: tuple[str, ...]) -> bool:
    return any(path == tree or path.startswith(f"{tree}/") for tree in trees)


def _files(before: Mapping[str, Entry], now: Mapping[str, Entry], scope: Scope) -> Iterator[Difference]:
    for path in sorted(before.keys() | now.keys()):
        was, is_ = before.get(path), now.get(path)
        if was == is_:
            continue
        step, reason = _file_step(path, was, is_, scope)
        yield Difference("file", path, described(was), described(is_), step, reason)


def _file_step(path: str, was: Entry | None, is_: Entry | None, scope: Scope) -> tuple[Step | None, str]:
    if was is None:
        return _deletion(path, scope)
    if was.kind == "o":
        return None, "devices, sockets and pipes are not made"
    if _below(path, scope.copied) or was.kind == "l":
        return Step.WRITE, ""
    if is_ is not None and (was.kind, was.size, was.time) == (is_.kind, is_.size, is_.time):
        return Step.MODE, ""
    if was.kind == "d" and is_ is None and _below(path, scope.noted):
        return Step.WRITE, ""
    return None, "its content was not copied; install its package again"


def _deletion(path: str, scope: Scope) -> tuple[Step | None, str]:
    if path.startswith(_NEVER_DELETED):
        return None, "files of the boot loader are not deleted"
    if _below(path, scope.copied + scope.noted + MADE_BY_ROLES):
        return Step.DELETE, ""
    return None, "it may be data of others"


def described(entry: Entry | None) -> str:
    """Return an entry for people."""
    if entry is None:
        return "absent"
    words = [{"f": "file", "d": "folder", "l": "link"}.get(entry.kind, "object")]
    words.append(f"to {entry.target}" if entry.kind == "l" else f"{entry.mode} {entry.owner}:{entry.group}")
    if entry.kind == "f" and entry.time:
        words.append(f"{entry.size} octets")
    words += [entry.digest[:12]] if entry.digest else []
    words += [entry.attributes] if entry.attributes else []
    return " ".join(words)


def tables(rules: str) -> dict[str, str]:
    """Return the tables of a rule set as nft prints it: each with its text."""
    found: dict[str, str] = {}
    name = ""
    for line in rules.splitlines(keepends=True):
        if line.startswith("table "):
            name = line.removeprefix("table ").rstrip(" {\n")
            found[name] = ""
        if name:
            found[name] += line
        if line.startswith("}"):
            name = ""
    return found


def _tables(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Difference]:
    for name in sorted(before.keys() | now.keys()):
        was, is_ = ("present" if name in state else "absent" for state in (before, now))
        if name not in before and name in OWN_TABLES:
            yield Difference("table", name, was, is_, Step.REMOVE)
        elif name not in now:
            yield Difference("table", name, was, is_, Step.LOAD)


def _sysctls(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Difference]:
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            yield Difference("sysctl", name, before[name].strip(), now[name].strip(), Step.SET)


def _modules(before: frozenset[str], now: frozenset[str]) -> Iterator[Difference]:
    for name in sorted(before ^ now):
        step = Step.LOAD if name in before else Step.UNLOAD
        was, is_ = ("loaded" if name in state else "absent" for state in (before, now))
        yield Difference("module", name, was, is_, step)


def _command_line(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Difference]:
    for fact in ("command line", "kernel"):
        was, is_ = before.get(fact, ""), now.get(fact, "")
        if was != is_:
            yield Difference("boot", fact, was, is_, reason="only a boot changes it")


@dataclass
class Orders:
    """What the program on the host must do; JSON."""

    stop: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    purge: list[str] = field(default_factory=list)
    install: list[str] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    trees: list[str] = field(default_factory=list)  # deleted with all that is below
    write: list[dict[str, Any]] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)
    start: list[str] = field(default_factory=list)
    tables: str = ""
    sysctls: dict[str, str] = field(default_factory=dict)
    load: list[str] = field(default_factory=list)
    unload: list[str] = field(default_factory=list)


def orders(before: HostState, now: HostState, found: list[Difference], restart: list[str]) -> Orders:
    """Return the steps that take differences back.

    Args:
        restart: units to start again after the files are written.
    """
    made = Orders(restart=restart)
    told, present = tables(before.rules), tables(now.rules)
    lists = {
        ("unit", Step.STOP): made.stop,
        ("unit", Step.START): made.start,
        ("link", Step.REMOVE): made.links,
        ("package", Step.PURGE): made.purge,
        ("file", Step.DELETE): made.delete,
        ("module", Step.LOAD): made.load,
        ("module", Step.UNLOAD): made.unload,
    }
    for item in found:
        if item.step is None:
            continue
        if (item.kind, item.step) in lists and item.subject not in MADE_BY_ROLES:
            lists[item.kind, item.step].append(item.subject)
        elif item.kind == "package":
            made.install.append(f"{item.subject}={item.before}")
        elif item.step is Step.DELETE:
            made.trees.append(item.subject)
        elif item.kind == "file":
            copied = item.step is Step.WRITE
            made.write.append({"path": item.subject, "whole": copied, **asdict(before.files[item.subject])})
        elif item.kind == "table":
            made.tables += (
                told[item.subject] if item.subject not in present else f"delete table {item.subject}\n"
            )
        elif item.kind == "sysctl":
            made.sysctls[item.subject] = before.sysctls[item.subject]
    return made
