"""The witness of the guard of IPv6 neighbours.

`tests/integration/test_guard.py` compares it with the kernel.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6Unknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from testbed.model.resolve import resolve
from testbed.plan.host_config.settings import RULESET, settings
from testbed.topology_file.schema import Spec
from testbed.verify.witnesses import nd_guard_model
from testbed.verify.witnesses.nd_guard_model import Guard, guards

TAP, OWN, PEER, OTHER = "tap0", "fd00::2", "fd00::3", "fd00::4"
GUARD = Guard(
    whole=True, allowed=frozenset({(TAP, PEER)}), links=frozenset({(TAP, "0xa0000000002")}), findings=()
)


def _frame(*layers: Packet, source: str = OWN, target: str = PEER) -> bytes:
    packet: Packet = Ether(src="0a:00:00:00:00:02", dst="0a:00:00:00:00:03") / IPv6(
        src=source, dst=target, hlim=255
    )
    for layer in layers:
        packet /= layer
    return bytes(packet)


@pytest.mark.parametrize(("frame", "stopped"), [
    (_frame(ICMPv6ND_NS(tgt=PEER)), False),
    (_frame(ICMPv6ND_NS(tgt=PEER), ICMPv6NDOptSrcLLAddr(lladdr="0a:00:00:00:00:02")), False),
    (_frame(ICMPv6ND_NS(tgt=PEER), ICMPv6NDOptSrcLLAddr(lladdr="0a:00:00:00:00:03")), True),
    (_frame(ICMPv6ND_NS(tgt=PEER), ICMPv6NDOptDstLLAddr(lladdr="0a:00:00:00:00:02")), True),
    (_frame(ICMPv6ND_NS(tgt=OTHER)), True),
    (_frame(ICMPv6ND_NS(tgt=PEER), source="fe80::2"), True),
    (_frame(ICMPv6ND_NS(tgt=PEER), source="::"), True),
    (_frame(ICMPv6ND_NA(tgt=OWN)), False),
    (_frame(ICMPv6ND_NA(tgt=OWN), target="ff02::1"), True),
    (_frame(ICMPv6ND_RA()), True),
    (_frame(IPv6ExtHdrDestOpt(), ICMPv6ND_RA()), True),
    (_frame(IPv6ExtHdrFragment(), ICMPv6ND_NS(tgt=PEER)), True),
    (_frame(IPv6ExtHdrFragment(m=1), ICMPv6EchoRequest(data=bytes(40))), False),
    (_frame(IPv6ExtHdrFragment(offset=5), ICMPv6ND_RA()), False),
    (_frame(ICMPv6EchoRequest(data=bytes(40)), target=OTHER), False),
    *((_frame(ICMPv6Unknown(type=kind, msgbody=bytes(40)), target=OTHER), False)
      for kind in (1, 2, 3, 4, 128, 129)),
    *((_frame(ICMPv6Unknown(type=kind, msgbody=bytes(40))), True) for kind in (0, 5, 127, 130, 134, 137)),
    (_frame(TCP(), target=OTHER), False),
    (bytes(Ether() / IP() / ICMP()), False),
])  # fmt: skip
def test_only_the_ends_of_a_flow_speak_of_neighbours(frame: bytes, stopped: bool) -> None:
    assert GUARD.stops(TAP, frame) is stopped
    assert not Guard(whole=False, allowed=GUARD.allowed, links=GUARD.links, findings=()).stops(TAP, frame)


def test_no_frame_breaks_the_witness() -> None:
    frame = _frame(IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(), ICMPv6ND_NS(tgt=PEER))
    for length in range(len(frame)):
        GUARD.stops(TAP, frame[:length])
    for _ in range(300):
        GUARD.stops(TAP, frame[:20] + os.urandom(60))


def _lab(*ranges: str) -> Any:
    tenant = {
        "networks": {"app": list(ranges)},
        "guests": {"web": {}, "db": {}},
        "allow": ["web -> db tcp/22"],
    }
    return resolve(
        Spec.model_validate({"version": 1, "name": "lab", "nodes": {"node": {}}, "tenants": {"red": tenant}})
    )


def _fleet(lab: Any, run: Any) -> Any:
    machine = SimpleNamespace(name="node", run=run)
    return SimpleNamespace(
        topology=lab, observe_once=lambda _, look: look(), everywhere=lambda do: {"node": do(machine)}
    )


def _printed(lab: Any, break_it: str) -> dict[str, str]:
    """Return the output of a node whose guard is as declared, except for one setting."""
    value = {
        item.name: "something else" if item.name == break_it else item.value
        for item in settings(lab, lab.nodes[0])
    }
    sets = {"allowed": value["neighbours"], "links": value["neighbour-links"]}
    held = "".join(
        f"\tset {name} {{\n\t\telements = {{ {', '.join(text.splitlines())} }}\n\t}}\n"
        for name, text in sets.items()
    )
    command = next(item.observe[0] for item in settings(lab, lab.nodes[0]) if item.name == "neighbour-guard")
    return {command: value["neighbour-guard"], RULESET: f"table netdev neighbours {{\n{held}}}"}


BROKEN = [
    ("", True, []),
    ("neighbour-guard", False, ["NET-05"]),
    ("neighbours", True, ["NET-01"]),
    ("neighbour-links", True, ["NET-05"]),
]


@pytest.mark.parametrize(("break_it", "whole", "findings"), BROKEN)
def test_a_guard_that_is_not_as_declared_is_a_finding_of_its_control(
    break_it: str, whole: bool, findings: list[str]
) -> None:
    lab = _lab("10.0.0.0/24", "fd00::/64")
    found = guards(
        _fleet(lab, lambda command: SimpleNamespace(text=f"{_printed(lab, break_it)[command]}\n"))
    )["node"]
    assert (found.whole, [control for control, _ in found.findings]) == (whole, findings)
    assert all(f"{break_it}: found " in told for _, told in found.findings)


def test_a_node_without_ipv6_has_no_guard() -> None:
    assert guards(_fleet(_lab("10.0.0.0/24"), None)) == {}


def test_an_extension_header_ends_where_its_length_says() -> None:
    """RFC 8200, 4.3: octet 1 counts units of 8 octets beyond the first."""
    packet = (
        bytes([0x60, 0, 0, 0, 0, 24, 0, 64]) + bytes(32) + bytes([58, 1]) + bytes(14) + b"\x87" + bytes(7)
    )
    assert nd_guard_model._upper_layer(packet) == (58, 56, None)
