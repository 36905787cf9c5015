"""The attack surface of a machine, and its baseline in ``surface.toml`` (PRO-01). Pure.

The surface is what others can talk to, what gives rights to the accounts that start it, and what runs:
sockets that listen, files that are setuid, setgid or have capabilities, and processes with their accounts and
confinement. Names that differ between labs and starts are replaced by words in capitals. The baseline has a
reason for each part, and the controls that watch it.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from testbed.inventory.records import Inventory
from testbed.model.topology import FIRST_WORKER_UID, Machine, Topology

FILE = Path(__file__).with_name("surface.toml")
LISTENER, PRIVILEGED, PROCESS = KINDS = ("listener", "privileged file", "process")
DOMAINS = ("listener", "file", "process")  # of the inventory, that the surface is read from
_WORKERS = range(FIRST_WORKER_UID, FIRST_WORKER_UID + 64)
_SPECIAL = 0o6000  # bits of a mode: setuid and setgid
_FIELDS = {"roles", "kind", "names", "detail", "reason", "controls"}
# What differs from start to start, once guests are GUEST.
_CHANGING = (
    (re.compile(r"(domain-|channel/)\d+-(?=GUEST)"), r"\1N-"),
    (re.compile(r"\.\d+\.ctl$"), ".N.ctl"),
    (re.compile(r"^(libvirt-)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), r"\1GUEST"),
)
# By their numbers in linux/capability.h.
_CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control",
    "setfcap", "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read",
    "perfmon", "bpf", "checkpoint_restore",
)  # fmt: skip


class Part(NamedTuple):
    """One part of a surface: its kind, its name, and what it may do, in words."""

    kind: str
    name: str
    detail: str


class Parser(NamedTuple):
    """A program that parses octets of a guest."""

    place: str
    parses: str
    controls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """One part of the baseline.

    Args:
        reason: why machines of the role have it.
        controls: ids of the controls that watch it.

    """

    part: Part
    reason: str
    controls: tuple[str, ...]


def surface(inventory: Inventory, topology: Topology, machine: Machine) -> set[Part]:
    """Return the parts of a machine's surface."""
    words = _Words(topology, machine)
    return {
        part for (domain, key), value in inventory.records.items() for part in words.of(domain, key, value)
    }


class _Words:
    """Names parts as they are called on every machine of a role."""

    def __init__(self, topology: Topology, machine: Machine) -> None:
        self._places = {str(nic.address): nic.plane.name for nic in machine.nics}
        # systemd writes a hyphen as \\x2d in the names of units.
        names = {guest.domain.replace("-", hyphen) for guest in topology.guests for hyphen in ("-", "\\x2d")}
        known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
        self._guests = re.compile(rf"(?:(?<![\w.])|(?<=x2d))(?:{known})(?!\w)" if known else r"(?!)")

    def of(self, domain: str, key: str, value: Any) -> Iterator[Part]:  # noqa: ANN401 - JSON of a machine
        if not isinstance(value, dict):
            return
        if domain == "listener":
            programs = sorted({self._plain(str(holder).split()[-1]) for holder in value.get("by", ())})
            yield Part(LISTENER, self._place(key), ", ".join(programs) or "nothing that is known")
        elif domain == "file" and value.get("type") == "file":
            mode = int(str(value.get("mode", "0")), 8)
            capabilities = (value.get("attributes") or {}).get("security.capability")
            if mode & _SPECIAL or capabilities:
                more = f", security.capability {capabilities}" if capabilities else ""
                yield Part(PRIVILEGED, key, f"mode {mode:04o}, owner {value.get('owner')}{more}")
        elif domain == "process":
            yield Part(PROCESS, self._plain(key), _rights(value, self._plain(str(value.get("profile", "")))))

    def _place(self, key: str) -> str:
        """Return where a socket listens, without the name of the first network namespace."""
        for address, plane in self._places.items():
            key = key.replace(f" {address}:", f" {plane}:")
        return self._plain(key.removeprefix("first "))

    def _plain(self, text: str) -> str:
        text = self._guests.sub("GUEST", text)
        for pattern, word in _CHANGING:
            text = pattern.sub(word, text)
        return text


def _rights(process: Mapping[str, Any], profile: str) -> str:
    """Return, in words, what a process may do."""
    uids = sorted({int(uid) for uid in str(process.get("uids", "0")).split()})
    accounts = ["a worker's" if uid in _WORKERS else str(uid) for uid in uids]
    mask = int(str(process.get("effective", "0")), 16)
    said = [f"account {' '.join(accounts)}", f"capabilities: {_capabilities(mask)}", f"profile: {profile}"]
    said += ["filtered system calls"] if str(process.get("seccomp")) == "2" else []
    said += ["no new privileges"] if str(process.get("no new privileges")) == "1" else []
    return "; ".join(said)


def _capabilities(mask: int) -> str:
    held = [name for number, name in enumerate(_CAPABILITIES) if mask >> number & 1]
    held += [f"number {number}" for number in range(len(_CAPABILITIES), 64) if mask >> number & 1]
    lacking = [name for number, name in enumerate(_CAPABILITIES) if not mask >> number & 1]
    if len(held) <= len(lacking):
        return " ".join(held) or "none"
    return f"all but {' '.join(lacking)}" if lacking else "all"


def baseline(file: Path = FILE) -> dict[str, tuple[Accepted, ...]]:
    """Return the accepted parts by role.

    Raises:
        ValueError: an entry is not well-formed, or a part is there twice.

    """
    return _accepted(file.read_text(encoding="utf-8"))


@cache
def _accepted(text: str) -> dict[str, tuple[Accepted, ...]]:
    """Return the accepted parts of a baseline's text, which is parsed once for all machines."""
    found: dict[str, list[Accepted]] = defaultdict(list)
    for entry in tomllib.loads(text)["part"]:
        if (
            set(entry) != _FIELDS
            or entry["kind"] not in KINDS
            or not entry["reason"]
            or not entry["controls"]
        ):
            raise ValueError(f"{entry} has other fields than {', '.join(sorted(_FIELDS))}, or an empty one")
        for role in entry["roles"]:
            found[role] += [
                Accepted(
                    Part(entry["kind"], name, entry["detail"]), entry["reason"], tuple(entry["controls"])
                )
                for name in entry["names"]
            ]
    for role, parts in found.items():
        names = [(item.part.kind, item.part.name, item.part.detail) for item in parts]
        if twice := sorted({str(name) for name in names if names.count(name) > 1}):
            raise ValueError(f"{role} has {'; '.join(twice)} twice")
    return {role: tuple(parts) for role, parts in found.items()}


def parsers(file: Path = FILE) -> tuple[Parser, ...]:
    """Return the programs that parse octets of a guest."""
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["parser"]
    return tuple(Parser(entry["place"], entry["parses"], tuple(entry["controls"])) for entry in entries)


def more(parts: Iterable[Part], accepted: Sequence[Accepted]) -> set[Part]:
    """Return the parts of a surface that the baseline does not have."""
    return {*parts} - {item.part for item in accepted}


def grown(parts: Iterable[Part], accepted: Sequence[Accepted]) -> list[str]:
    """Return, in words, the parts of a surface that the baseline does not have."""
    others: dict[tuple[str, str], list[str]] = defaultdict(list)
    for part in sorted({item.part for item in accepted}):
        others[part.kind, part.name].append(part.detail)
    return [
        f"{part.kind} {part.name}: {part.detail}; {_instead(others.get((part.kind, part.name), []))}"
        for part in sorted(more(parts, accepted))
    ]


def _instead(details: Sequence[str]) -> str:
    return f"the baseline has: {' or: '.join(details)}" if details else "the baseline has no such part"


def gone(parts: Iterable[Part], accepted: Sequence[Accepted]) -> list[str]:
    """Return the parts of the baseline that a surface does not have; that is no fault."""
    there = {*parts}
    return [f"{item.part.kind} {item.part.name}" for item in accepted if item.part not in there]
