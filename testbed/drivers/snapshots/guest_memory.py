"""Guests that go on from memory that was saved before they were anybody (docs/decisions/0026).

A node that has started from saved memory has a guest's as well:
playbooks/roles/hypervisor/files/before-saving puts it there. What a guest is told when it wakes,
playbooks/roles/guest/files/wake reads.
"""

from __future__ import annotations

import base64
import secrets
import shlex
import struct
import time
from collections.abc import Callable
from typing import Any

from testbed.drivers.ssh.client import Host
from testbed.errors import ProvisioningError
from testbed.model.topology import Guest
from testbed.plan.libvirt_xml.machine import machine_id

Ask = Callable[[str, dict[str, object], int], dict[str, Any]]  # a guest's agent: command, arguments, seconds

_SAVED = "/var/lib/testbed/saved-guest"
_WAKING = "/run/testbed-waking"
# What libvirt puts before a domain's XML and its memory: 16 octets of magic, then version, length of the XML
# with the
# zero behind it, whether it ran, format of the memory, and where a cookie lies behind the XML; then nothing
# up to here.
_HEADER = 92
_FIELDS = struct.Struct("=16s5I")
_VERSIONS = (2, 3)
_FRESH = 128  # octets
_REQUEST = "/run/wake"  # where a guest waits to be told who it is
_CALL = 10  # seconds


def saved_header(host: Host) -> bytes:
    """Return the header of the memory that a node keeps for its guests; nothing if it keeps none.

    Raises:
        InstrumentError: the node does not answer.

    """
    found = host.sudo(f"cat {_SAVED}/header").stdout
    return found if len(found) == _HEADER and _FIELDS.unpack_from(found)[1] in _VERSIONS else b""


def headed(header: bytes, domain: str) -> bytes:
    """Return what stands before the memory in the file from which libvirt starts another domain with it.

    Args:
        domain: XML of that domain.

    """
    magic, version, _, _, form, _ = _FIELDS.unpack_from(header)
    text = domain.encode() + b"\0"
    return _FIELDS.pack(magic, version, len(text), 0, form, 0).ljust(_HEADER, b"\0") + text


def lay_disk(host: Host, guest: Guest) -> None:
    """Make a guest's root disk what it was when memory was saved.

    Raises:
        ProvisioningError: the node cannot.

    """
    host.must(
        f"install -m 0600 -o {guest.uid} -g {guest.uid} {_SAVED}/root.qcow2 {shlex.quote(guest.root_disk)}"
    )


def lay_out(host: Host, guest: Guest, head: bytes) -> str:
    """Put a guest's memory together on its node, behind what libvirt must read first; return the file's path.

    Raises:
        ProvisioningError: the node cannot.

    """
    path = f"{_WAKING}/{guest.domain}"
    host.must(f"install -d -m 0700 {_WAKING} && umask 077 && cat - {_SAVED}/memory > {path}", stdin=head)
    return path


def told(guest: Guest) -> bytes:
    """Return what makes a guest somebody when its memory goes on (playbooks/roles/guest/files/wake)."""
    lines = [guest.name, machine_id(guest.uuid), str(time.time_ns()), secrets.token_hex(_FRESH)]
    lines += [f"{nic.mac}{' dhcp6' if nic.address6 else ''}" for nic in guest.nics]
    return "".join(f"{line}\n" for line in lines).encode()


def tell(ask: Ask, guest: Guest) -> None:
    """Tell a guest who it is, by its agent.

    Raises:
        InstrumentError: the agent does not answer, or nobody waits in the guest.

    """
    handle = ask("guest-file-open", {"path": _REQUEST, "mode": "w"}, _CALL).get("value")
    ask("guest-file-write", {"handle": handle, "buf-b64": base64.b64encode(told(guest)).decode()}, _CALL)
    ask("guest-file-close", {"handle": handle}, _CALL)


def require_identity(ask: Ask, guest: Guest) -> None:
    """Return if a guest has become somebody.

    Raises:
        InstrumentError: the agent does not answer.
        ProvisioningError: it has not.

    """
    answer = ask("guest-get-host-name", {}, _CALL)
    if answer.get("host-name") != guest.name:
        fact = str(answer)[:400]
        raise ProvisioningError(
            f"{guest.label} does not take its identity",
            fact=fact,
            remedy="run `testbed up` again, or use --cold",
        )
