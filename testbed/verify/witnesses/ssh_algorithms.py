"""The algorithms that a machine's ssh server offers, compared with those that may protect a login (ACC-03).

A server names what it accepts in the first packet of each connection (RFC 4253, 7.1). Nothing is agreed and
no credential is offered.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError

PORT = 22
# What may protect a login, by kind. SHA-1, CBC, groups of Diffie and Hellman, NIST's curves, and MACs of less
# than 128 bits or over the plain text are not among them. "ext-info-s" is no algorithm (RFC 8308, 2.1).
POLICY: Mapping[str, frozenset[str]] = {
    "key exchange": frozenset(
        {
            "mlkem768x25519-sha256",
            "sntrup761x25519-sha512",
            "sntrup761x25519-sha512@openssh.com",
            "curve25519-sha256",
            "curve25519-sha256@libssh.org",
            "ext-info-s",
            "kex-strict-s-v00@openssh.com",
        }
    ),
    "host key": frozenset({"ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519"}),
    "cipher": frozenset(
        {"aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "aes256-ctr", "aes128-ctr"},
    ),
    "MAC": frozenset({"hmac-sha2-512-etm@openssh.com", "hmac-sha2-256-etm@openssh.com"}),
    "compression": frozenset({"none", "zlib@openssh.com"}),
}
# Without it a stranger on the way can remove the first packets of a connection (CVE-2023-48795).
STRICT = "kex-strict-s-v00@openssh.com"
_LISTS = ("key exchange", "host key", "cipher", "cipher", "MAC", "MAC", "compression", "compression")
_KEXINIT, _COOKIE = 20, 16  # number of the packet, and octets before its lists (RFC 4253, 7.1)
_LINES, _LINE = 20, 255  # until the version; octets of one (4.2)
_PACKET = 35_000  # octets (6.1)
_SECONDS, _PAUSE = 30.0, 0.5  # in which a server answers, and between two tries


@dataclass(frozen=True, slots=True)
class Offer:
    """The algorithms that a server accepts.

    Args:
        version: that it names.
        names: by kind; those of both directions together.
    """

    version: str
    names: Mapping[str, frozenset[str]]


def weak(offer: Offer) -> list[str]:
    """Return each algorithm that must not be offered, and protection that is missing.

    Raises:
        UnseenError: a list is empty, so that nothing was offered.
    """
    if empty := [kind for kind in POLICY if not offer.names.get(kind)]:
        raise UnseenError(f"no {' and no '.join(empty)} is offered")
    found = [
        f"{kind} {name}" for kind, allowed in POLICY.items() for name in sorted(offer.names[kind] - allowed)
    ]
    return found if STRICT in offer.names["key exchange"] else [*found, f"no {STRICT}"]


def offered(address: str, port: int = PORT, seconds: float = _SECONDS) -> Offer:
    """Return what the server at an address offers; it is asked again while it refuses connections.

    Args:
        seconds: until it must have answered.

    Raises:
        InstrumentError: it does not answer in time, or not as an ssh server does.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return _asked(address, port, end)
        except (OSError, ValueError) as error:
            if time.monotonic() + _PAUSE > end:
                raise InstrumentError(
                    f"the ssh server at {address} names no algorithms",
                    fact=str(error) or type(error).__name__,
                    remedy="run `testbed status`",
                ) from error
            time.sleep(_PAUSE)


def _asked(address: str, port: int, end: float) -> Offer:
    with socket.create_connection((address, port), timeout=max(0.1, end - time.monotonic())) as connection:
        stream = _Stream(connection, end)
        version = _version(stream)
        connection.sendall(b"SSH-2.0-testbed\r\n")
        size = int.from_bytes(stream.exactly(4), "big")
        if not 1 + _COOKIE < size <= _PACKET:
            raise ValueError(f"a packet of {size} octets")
        return Offer(version, parsed(stream.exactly(size)))


class _Stream:
    """What a server sends until a deadline."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection, self._end, self._kept = connection, end, b""

    def exactly(self, size: int) -> bytes:
        """Return the next octets."""
        while len(self._kept) < size:
            self._more()
        data, self._kept = self._kept[:size], self._kept[size:]
        return data

    def line(self) -> bytes:
        """Return the next line."""
        while b"\n" not in self._kept:
            if len(self._kept) > _LINE:
                raise ValueError("a line does not end")
            self._more()
        line, _, self._kept = self._kept.partition(b"\n")
        return line

    def _more(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("it does not answer in time")
        self._connection.settimeout(left)
        data = self._connection.recv(_PACKET)
        if not data:
            raise ValueError("the connection ended")
        self._kept += data


def _version(stream: _Stream) -> str:
    """Return the version that a server names; lines before it are its own business (RFC 4253, 4.2)."""
    for _ in range(_LINES):
        line = stream.line()
        if line.startswith(b"SSH-2.0-"):
            return line.decode("ascii", "replace").strip()
    raise ValueError("it names no version")


def parsed(packet: bytes) -> dict[str, frozenset[str]]:
    """Return the names in a packet that begins a key exchange, by kind.

    Args:
        packet: length of the padding, number, cookie, and lists; untrusted.

    Raises:
        ValueError: it is another packet, or is cut off.
    """
    if packet[1:2] != bytes([_KEXINIT]):
        raise ValueError("the first packet begins no key exchange")
    found: dict[str, set[str]] = {}
    at = 2 + _COOKIE
    for kind in _LISTS:
        size = int.from_bytes(packet[at : at + 4], "big")
        text = packet[at + 4 : at + 4 + size]
        if at + 4 + size > len(packet):
            raise ValueError("a list of algorithms is cut off")
        found.setdefault(kind, set()).update(filter(None, text.decode("ascii", "replace").split(",")))
        at += 4 + size
    return {kind: frozenset(names) for kind, names in found.items()}
