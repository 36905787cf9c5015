"""Objects of libvirt: guests, networks, pools and filters as XML, and names of secrets."""

from __future__ import annotations

import os
import re

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread

_MARK = "end-of-one-object"
_LISTS = {
    "guest": ("list --all --name", "dumpxml"),
    "guest kept": ("list --all --persistent --name", "dumpxml --inactive"),
    "libvirt network": ("net-list --all --name", "net-dumpxml"),
    "pool": ("pool-list --all --name", "pool-dumpxml"),
    "libvirt filter": ("nwfilter-list", "nwfilter-dumpxml"),
    "host device": ("nodedev-list --cap mdev", "nodedev-dumpxml"),
}
_SECRETS = "secret-list"
_COMPLAINTS = 50  # lines
_NUMBER = re.compile(r"(?<= id=')\d+(?=')|(?<=domain-)\d+(?=-)")
_QUOTED = re.compile(r"^[\w.:@/+ -]{1,200}$")


def collect(records: Records) -> None:
    """Record all objects of libvirt; read-only."""
    for name in os.listdir("/etc/libvirt/hooks") if os.path.isdir("/etc/libvirt/hooks") else []:
        records.add("libvirt hook", name)
    names = _sections(records, [listing for listing, _ in _LISTS.values()] + [_SECRETS])
    wanted: list[tuple[str, str, str]] = []
    for (kind, (_, dump)), text in zip(_LISTS.items(), names, strict=False):
        for name in _named(kind, text):
            if _QUOTED.match(name):
                wanted.append((kind, name, f"{dump} '{name}'"))
            else:
                records.add(kind, name, "its name cannot be given to virsh")
    for line in names[-1].splitlines()[:200]:
        records.add("libvirt secret", " ".join(line.split()))
    told = _sections(records, [command for *_, command in wanted])
    for (kind, name, _), text in zip(wanted, told, strict=True):
        if text.strip():
            records.add(kind, name, lines(text))
        else:
            records.unread(kind, name, "virsh prints nothing")


def _sections(records: Records, commands: list[str]) -> list[str]:
    """Run commands of virsh in one process and return what each printed.

    What virsh complains of is recorded as unread, since a list that fails prints as much as an empty one.

    Raises:
        Unread: not every one has an answer.

    """
    if not commands:
        return []
    script = "".join(f"{command}; echo '{_MARK}'; " for command in commands)
    complaints: list[str] = []
    printed = programs.run(["virsh", "-q", "-r", "-c", "qemu:///system", script], complaints=complaints)
    parts = re.split(rf"{_MARK}\n?", printed)  # before libvirt 11, echo ended its line
    if len(parts) != len(commands) + 1:
        raise Unread(
            f"virsh answers {len(parts) - 1} of {len(commands)} questions: "
            f"{printed[-200:]}{'; '.join(complaints)[:200]}"
        )
    for complaint in complaints[:_COMPLAINTS]:
        records.unread("guests", complaint, "virsh complains so")
    return parts[:-1]


def _named(kind: str, text: str) -> list[str]:
    found = [line.strip() for line in text.splitlines() if line.strip()]
    return [line.split()[0] for line in found] if kind == "libvirt filter" else found


def lines(xml: str) -> list[str]:
    """Return the lines of a description with their depth, without numbers of one start."""
    found = []
    for line in xml.splitlines():
        text = line.strip()
        if text and not re.match(r"<(?:allocation|available) unit=", text):
            depth = (len(line) - len(line.lstrip())) // 2
            found.append(f"{depth} {_NUMBER.sub('N', text)}")
    return found
