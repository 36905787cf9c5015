"""Model of the Neighbor Discovery guard of a node: its verdict on a frame (NET-05).

OVN's pipeline cannot show it, since the guard filters frames before Open vSwitch. So the live rules are
compared with their file, the live sets are read, and a frame is judged by both as the kernel does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from testbed.plan.descriptions import change
from testbed.plan.host_config.nd_guard import GUARDS
from testbed.plan.host_config.settings import Setting, settings
from testbed.verify.fleet import Fleet, MachineView

_HARMLESS = frozenset({1, 2, 3, 4, 128, 129})  # ICMPv6 errors and echo, RFC 4443
_EXTENSIONS, _FRAGMENT, _ICMP6 = frozenset({0, 43, 60}), 44, 58
_SOLICITATION, _NEIGHBOR = 135, (135, 136)  # RFC 4861
_BARE = b"\0\x18"  # length of a solicitation without options
_FIRST, _LATER = "first", "later"
_LINK_LOCAL = IPv6Network("fe80::/10")


@dataclass(frozen=True, slots=True)
class Guard:
    """The guard of one node.

    Args:
        whole: the live rules are those of the file, and every interface is guarded.
        allowed: interface and address of every neighbour that may be asked for and answered, from the kernel.
        links: interface and MAC address that the interface may announce, as a number.
        findings: differences from the topology, each after the id of the control that rests on the setting.
    """

    whole: bool
    allowed: frozenset[tuple[str, str]]
    links: frozenset[tuple[str, str]]
    findings: tuple[tuple[str, str], ...]

    def stops(self, interface: str, frame: bytes) -> bool:
        """Return whether the guard drops a frame that comes from a guest."""
        return self.whole and frame[12:14] == b"\x86\xdd" and self._denies(interface, frame[14:])

    def _denies(self, interface: str, packet: bytes) -> bool:
        header, at, fragment = _upper_layer(packet)
        if header not in (None, _ICMP6) or fragment is _LATER:
            return False
        kind = packet[at] if header is not None and len(packet) >= at + 8 else 0
        if kind in _HARMLESS:
            return False
        source = IPv6Address(packet[8:24].ljust(16, b"\0"))
        if fragment is not None or source in _LINK_LOCAL or source.is_unspecified or kind not in _NEIGHBOR:
            return True
        if (
            kind == _SOLICITATION
            and packet[4:6] != _BARE
            and not self._told(interface, packet[at + 24 : at + 32])
        ):
            return True
        # A solicitation's target is at octet 8 of the message; an advertisement is judged by its destination.
        about = (packet[at + 8 : at + 24] if kind == _SOLICITATION else packet[24:40]).ljust(16, b"\0")
        return (interface, str(IPv6Address(about))) not in self.allowed

    def _told(self, interface: str, option: bytes) -> bool:
        """Return whether an option announces the interface's own MAC address (RFC 4861, 4.6.1)."""
        return option[:2] == b"\1\1" and (interface, f"{int.from_bytes(option[2:], 'big'):#x}") in self.links


def _upper_layer(packet: bytes) -> tuple[int | None, int, str | None]:
    """Return the upper-layer protocol of a packet, its offset, and which fragment it is.

    The protocol is None if the packet is too short for it; the fragment is None if the packet is not
    fragmented.
    """
    header, at, fragment = packet[6] if len(packet) >= 40 else None, 40, None
    while header in _EXTENSIONS or header == _FRAGMENT:
        if len(packet) < at + 8:
            return None, at, fragment
        if header == _FRAGMENT:
            fragment = _LATER if int.from_bytes(packet[at + 2 : at + 4], "big") >> 3 else _FIRST
        size = 8 if header == _FRAGMENT else 8 + packet[at + 1] * 8
        header, at = packet[at], at + size
        if fragment is _LATER:
            break
    return header, at, fragment


def guards(fleet: Fleet) -> dict[str, Guard]:
    """Return the guard of each node that has one, as it is in this phase.

    Raises:
        InstrumentError: a node cannot be looked at.

    """
    return fleet.observe_once(
        "guards",
        lambda: {
            name: found for name, found in fleet.everywhere(lambda node: _look(fleet, node)).items() if found
        },
    )


def _look(fleet: Fleet, node: MachineView) -> Guard | None:
    member = next(item for item in fleet.topology.nodes if item.name == node.name)
    wanted = {item.name: item for item in settings(fleet.topology, member) if item.name in GUARDS}
    printed = {
        command: node.run(command).text.strip()
        for command in {command for item in wanted.values() for command in item.observe}
    }
    live = {name: item.reading(printed) for name, item in wanted.items()}
    return _guard(node.name, wanted, live) if wanted else None


def _guard(node: str, wanted: Mapping[str, Setting], live: Mapping[str, str]) -> Guard:
    different = [wanted[name] for name in GUARDS if live[name] != wanted[name].value]
    return Guard(
        whole=wanted[GUARDS[0]] not in different,
        allowed=_pairs(live[GUARDS[1]]),
        links=_pairs(live[GUARDS[2]]),
        findings=tuple(
            (item.controls, f"{node}: {item.name}: {change('value', live[item.name], item.value, {})}")
            for item in different
        ),
    )


def _pairs(text: str) -> frozenset[tuple[str, str]]:
    return frozenset(
        (device, value) for device, _, value in (line.partition(" . ") for line in text.splitlines())
    )
