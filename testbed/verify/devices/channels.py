"""Rules about channels between a guest and its root partition (DEV-03). Pure.

A guest has two: its agent and its console. The monitor is QEMU's, and no guest can write to it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, TypeVar
from xml.etree import ElementTree as ET

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from testbed.hosts.rules import UnseenError
from testbed.untrusted.answers import formed
from testbed.untrusted.text import line

AGENT = "org.qemu.guest_agent.0"
_TAGS = ("channel", "console", "parallel", "redirdev", "serial", "shmem", "smartcard", "vsock", "filesystem")
_DECLARED = {"channel": 1, "serial": 1, "console": 1}  # libvirt shows the serial port as a console once more
_CHARDEVS = {
    "charchannel0": r"unix:/run/libvirt/qemu/channel/\d+-{domain}/org\.qemu\.guest_agent\.0(,server.*)?",
    "charserial0": r"pty:/dev/pts/\d+",
    "charmonitor": r"unix:/var/lib/libvirt/qemu/domain-\d+-{domain}/monitor\.sock(,server.*)?",
}
_PORT = re.compile(
    r"child<(virtserialport|virtconsole|vhost-[\w-]+|ivshmem-[\w-]+|pci-serial[\w-]*|usb-serial)>"
)
_SERIAL_PORT = "child<virtserialport>"
_Short = Annotated[str, Field(max_length=400)]
_Rights = tuple[int, int, int]  # account, group, permissions


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Socket:
    """A socket of a channel on a node.

    Args:
        owner: account, group and permissions.
        folder: likewise, of its folder.
        listening: sockets that accept connections under its name.
    """

    domain: _Short
    path: _Short
    socket: bool
    owner: _Rights
    folder: _Rights
    listening: int


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Channels:
    """What a node shows of channels."""

    sockets: Annotated[tuple[Socket, ...], Field(max_length=1000)]


_CHANNELS = TypeAdapter(Channels)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Logs:
    """Lines of a node's logs that have a text, as ASCII literals.

    Args:
        files: path and line.
        libvirt: lines of libvirt's log in that time.
    """

    files: Annotated[tuple[tuple[_Short, str], ...], Field(max_length=1000)]
    journal: Annotated[tuple[str, ...], Field(max_length=1000)]
    libvirt: int


_LOGS = TypeAdapter(Logs)


def parsed(answer: object) -> Channels:
    """Return the channels of a node.

    Raises:
        UnseenError: the answer has another form.
    """
    return _formed(_CHANNELS, answer)


def parsed_logs(answer: object) -> Logs:
    """Return the lines of a node's logs.

    Raises:
        UnseenError: the answer has another form.
    """
    return _formed(_LOGS, answer)


def _formed(form: TypeAdapter[_Value], answer: object) -> _Value:
    try:
        return formed(form, answer)
    except ValueError as error:
        raise UnseenError(str(error)) from error


def undeclared(domain: str, xml: str, answers: Mapping[str, object]) -> list[str]:
    """Return the channels of a domain beside its agent and its console.

    Args:
        xml: libvirt's live XML.
        answers: QEMU's, by the names of `testbed.verify.devices.observe.QUESTIONS`.

    Raises:
        UnseenError: the answers show no channel at all.
    """
    devices = ET.fromstring(xml).find("devices")
    found = []
    for tag in _TAGS:
        shown = devices.findall(tag) if devices is not None else []
        if len(shown) > _DECLARED.get(tag, 0):
            found.append(f"libvirt's XML has {len(shown)} of {tag}, not {_DECLARED.get(tag, 0)}")
    target = devices.find("channel/target") if devices is not None else None
    if target is not None and target.get("name") != AGENT:
        found.append(f"libvirt's XML has the channel {line(target.get('name', ''), 80)}")
    return found + _of_qemu(domain, answers)


def _of_qemu(domain: str, answers: Mapping[str, object]) -> list[str]:
    chardevs, children = _rows(answers, "chardevs"), _rows(answers, "peripheral")
    found, seen = [], set()
    for row in chardevs:
        label, place = str(row.get("label")), str(row.get("filename"))
        pattern = _CHARDEVS.get(label, "").format(domain=re.escape(domain))
        if not pattern or label in seen or not re.fullmatch(pattern, place):
            found.append(f"QEMU has the character device {line(label, 60)} at {line(place, 120)}")
        seen.add(label)
    kinds = [str(row.get("type")) for row in children]
    ports = [kind for kind in kinds if _PORT.fullmatch(kind)]
    if len(ports) != ports.count(_SERIAL_PORT) or len(ports) > 1:
        found.append(f"QEMU has the ports {line(', '.join(ports), 200)}")
    if "charmonitor" not in seen or not kinds:
        raise UnseenError(f"QEMU of {domain} does not show its monitor")
    return found


def _rows(answers: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    rows = answers.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnseenError(f"QEMU's answer about {name} has another form")
    return rows


def exposed(channels: Channels, workers: Mapping[str, int], domains: Collection[str]) -> list[str]:
    """Return sockets that other accounts than the worker's reach, that are missing, or that are there twice.

    libvirt starts QEMU with a umask that leaves the socket open to its group, so its folder counts as well.

    Args:
        workers: account of the worker, by domain of the topology.
        domains: all domains that run.
    """
    found = []
    for domain in sorted(domains):
        own = [item for item in channels.sockets if item.domain == domain]
        if len(own) != 1:
            found.append(f"{domain} has {len(own)} sockets of channels, not one")
        for item in own:
            found += [f"{domain}: {item.path} {text}" for text in _open(item, workers.get(domain))]
    strange = sorted({item.domain for item in channels.sockets} - set(domains))
    return found + [f"a channel of {name} is there, which does not run" for name in strange]


def _open(item: Socket, worker: int | None) -> list[str]:
    account = item.folder[0] if worker is None else worker
    found = [] if item.socket and item.path.endswith(f"/{AGENT}") else ["is no socket of an agent"]
    if item.listening != 1:
        found.append(f"has {item.listening} listening sockets")
    if {item.owner[0], item.folder[0]} != {account}:
        found.append(f"belongs to {item.owner[0]} in a folder of {item.folder[0]}, not to {account}")
    if _others(item.owner, account) and _others(item.folder, account):
        found.append(f"has mode {item.owner[2]:o} in a folder of mode {item.folder[2]:o}")
    return found


def _others(rights: _Rights, account: int) -> bool:
    """Return whether other accounts have any right; a worker's group has its account's number."""
    _, group, mode = rights
    return bool(mode & 0o007 or (mode & 0o070 and group not in (0, account)))


def obeyed(logs: Logs) -> list[str]:
    """Return where a node's logs have characters of a guest that a terminal would obey.

    Raises:
        UnseenError: libvirt has written nothing, so that its log was not seen.
    """
    if not logs.libvirt:
        raise UnseenError("the log of libvirt is empty")
    rows = [*((path, row) for path, row in logs.files), *(("the journal", row) for row in logs.journal)]
    return sorted({f"{place} has {line(row, 160)}" for place, row in rows if "\\" in row})
