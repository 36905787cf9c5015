"""Starts guests from memory that was saved before they had an identity.

docs/decisions/0026 has the reasons. A node that was started from saved memory also holds saved memory of a
guest: playbooks/roles/hypervisor/files/before-saving stores it. In the guest,
playbooks/roles/guest/files/wake reads the identity that this module sends.
"""

from __future__ import annotations

import base64
import secrets
import shlex
import struct
import time
from collections.abc import Callable
from typing import Any

from testbed import timeouts
from testbed.drivers.ssh.client import Host
from testbed.errors import ProvisioningError
from testbed.model.topology import Guest
from testbed.plan.libvirt_xml.machine import machine_id

Ask = Callable[[str, dict[str, object], int], dict[str, Any]]  # a guest's agent: command, arguments, seconds

_SAVED = "/var/lib/testbed/saved-guest"
_WAKING = "/run/testbed-waking"
# Header of libvirt's save files, before the domain's XML and the memory: 16 octets of magic, then five 32-bit
# integers in host byte order, then zeros. The integers are the version, the length of the XML with its final
# NUL, whether the domain was running, the format of the memory, and the offset of a cookie behind the XML.
_HEADER = 92
_FIELDS = struct.Struct("=16s5I")
_VERSIONS = (2, 3)
_FRESH = 128  # random octets for a guest; all that start from one saved memory share its generator's state
_REQUEST = "/run/wake"  # file through which a guest receives its identity
_CALL = int(timeouts.GUEST_CALL)


def saved_header(host: Host) -> bytes:
    """Return the header of the memory that a node keeps for its guests, or b"".

    Raises:
        InstrumentError: the node does not answer.

    """
    found = host.sudo(f"cat {_SAVED}/header").stdout
    return found if len(found) == _HEADER and _FIELDS.unpack_from(found)[1] in _VERSIONS else b""


def memory_header(header: bytes, domain: str) -> bytes:
    """Return the start of a libvirt save file that restores the saved memory as another domain.

    Args:
        header: header of the saved memory, whose magic, version and format are kept.
        domain: XML of the other domain.

    """
    magic, version, _, _, form, _ = _FIELDS.unpack_from(header)
    text = domain.encode() + b"\0"
    return _FIELDS.pack(magic, version, len(text), 0, form, 0).ljust(_HEADER, b"\0") + text


def lay_disk(host: Host, guest: Guest) -> None:
    """Copy the disk that belongs to the saved memory to a guest's root disk.

    Raises:
        ProvisioningError: the copy fails on the node.

    """
    host.must(
        f"install -m 0600 -o {guest.uid} -g {guest.uid} {_SAVED}/root.qcow2 {shlex.quote(guest.root_disk)}"
    )


def place_memory(host: Host, guest: Guest, head: bytes) -> str:
    """Write a guest's save file on its node, with a new header, and return its path.

    Raises:
        ProvisioningError: the file cannot be written.

    """
    path = f"{_WAKING}/{guest.domain}"
    host.must(f"install -d -m 0700 {_WAKING} && umask 077 && cat - {_SAVED}/memory > {path}", stdin=head)
    return path


def identity_of(guest: Guest) -> bytes:
    """Return the identity for a guest, as playbooks/roles/guest/files/wake reads it."""
    lines = [guest.name, machine_id(guest.uuid), str(time.time_ns()), secrets.token_hex(_FRESH)]
    lines += [f"{nic.mac}{' dhcp6' if nic.address6 else ''}" for nic in guest.nics]
    return "".join(f"{line}\n" for line in lines).encode()


def send_identity(ask: Ask, guest: Guest) -> None:
    """Send a guest its identity, through its agent.

    Raises:
        InstrumentError: the agent does not answer, or no process in the guest waits for the identity.

    """
    handle = ask("guest-file-open", {"path": _REQUEST, "mode": "w"}, _CALL).get("value")
    ask(
        "guest-file-write",
        {"handle": handle, "buf-b64": base64.b64encode(identity_of(guest)).decode()},
        _CALL,
    )
    ask("guest-file-close", {"handle": handle}, _CALL)


def require_identity(ask: Ask, guest: Guest) -> None:
    """Check that a guest has applied its identity, by its host name.

    Raises:
        InstrumentError: the agent does not answer.
        ProvisioningError: the guest has another host name.

    """
    answer = ask("guest-get-host-name", {}, _CALL)
    if answer.get("host-name") != guest.name:
        fact = str(answer)[:400]
        raise ProvisioningError(
            f"{guest.label} does not take its identity",
            fact=fact,
            remedy="run `testbed up` again, or use --cold",
        )
