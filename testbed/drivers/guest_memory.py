"""Guests that go on from memory that was saved before they were anybody (docs/decisions/0026).

A node that has started from saved memory has a guest's as well: playbooks/roles/hypervisor/files/before-saving puts it
there. What a guest is told when it wakes, playbooks/roles/guest/files/wake reads.
"""

from __future__ import annotations

import base64
import secrets
import shlex
import struct
import time

from testbed.drivers.ssh import Host
from testbed.errors import ProvisioningError
from testbed.model.testbed import Guest
from testbed.plan.domains import machine_id

_SAVED = "/var/lib/testbed/saved-guest"
_WAKING = "/run/testbed-waking"
# What libvirt puts before a domain's XML and its memory: 16 octets of magic, then version, length of the XML with the
# zero behind it, whether it ran, format of the memory, and where a cookie lies behind the XML; then nothing up to here.
_HEADER = 92
_FIELDS = struct.Struct("=16s5I")
_VERSIONS = (2, 3)
_FRESH = 128  # octets
_PROGRAM = "/usr/lib/testbed/wake"


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


def lay_out(host: Host, guest: Guest, head: bytes) -> str:
    """Put a guest's file together on its node, and its root disk as it was when memory was saved; return the file's path.

    Raises:
        ProvisioningError: the node cannot.

    """
    path = f"{_WAKING}/{guest.domain}"
    disk = shlex.quote(guest.root_disk)
    host.must(
        f"install -d -m 0700 {_WAKING} && (umask 077 && cat - {_SAVED}/memory > {path}) && cat {_SAVED}/root.qcow2 > {disk}", stdin=head
    )
    return path


def clear(host: Host, path: str) -> None:
    """Remove what `lay_out` has put together.

    Raises:
        ProvisioningError: the node cannot.

    """
    host.must(f"rm -f {path}")


def call(guest: Guest) -> dict[str, object]:
    """Return what a guest's agent is asked for when its memory goes on: to run the program that makes it somebody."""
    lines = [guest.name, machine_id(guest.uuid), str(time.time_ns()), secrets.token_hex(_FRESH)]
    lines += [f"{nic.mac}{' dhcp6' if nic.address6 else ''}" for nic in guest.nics]
    text = "".join(f"{line}\n" for line in lines)
    told = base64.b64encode(text.encode()).decode()
    return {"path": "/usr/bin/python3", "arg": ["-ISu", _PROGRAM], "input-data": told, "capture-output": True}


def require_done(guest: Guest, status: dict[str, object]) -> None:
    """Return if the program has ended well.

    Args:
        status: what the agent says of it.

    Raises:
        ProvisioningError: it has not.

    """
    if status.get("exited") is not True or status.get("exitcode") != 0:
        fact = str(status)[:400]
        raise ProvisioningError(f"{guest.label} does not take its identity", fact=fact, remedy="run `testbed up` again, or use --cold")
