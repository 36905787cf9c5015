"""Interfaces of this machine: found by MAC address, asked for addresses, opened for frames."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from pathlib import Path


def interface_of(mac: str) -> str:
    """Return the name of the interface with a MAC address, or the empty string."""
    for entry in sorted(Path("/sys/class/net").iterdir()):
        with contextlib.suppress(OSError):
            if (entry / "address").read_text().strip() == mac:
                return entry.name
    return ""


def has_address(name: str, address: str) -> bool:
    """Tell whether an interface has an IPv4 address as its first one (SIOCGIFADDR)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, contextlib.suppress(OSError):
        answer = fcntl.ioctl(control, 0x8915, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24]) == address
    return False


def has_address6(name: str, address: str) -> bool:
    """Tell whether an interface has an IPv6 address that it may use: not tentative, no duplicate (if_inet6,
    IFA_F_*).
    """
    with contextlib.suppress(OSError, ValueError):
        wanted = socket.inet_pton(socket.AF_INET6, address).hex()
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found, _, _, _, flags, device = line.split()
            if (found, device) == (wanted, name):
                return not int(flags, 16) & 0x48
    return False


def packet_socket(name: str, protocol: int) -> socket.socket:
    """Return a socket for the frames of one interface; protocol 0 receives none, 3 all."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    opened.bind((name, protocol))
    return opened


def outlet(mac: str) -> socket.socket:
    """Return a socket that sends frames from the interface with a MAC address."""
    return packet_socket(interface_of(mac) or "none", 0)
