"""Floods as a node's counters show them, and the limits in the node's kernel (NET-12)."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.plan import policing
from testbed.plan.host_config.settings import FILTERS
from testbed.verify.attackers import flooding
from testbed.verify.attackers.flooding import Bound, Flood, flood, tracked, unlimited
from tests.shapes import lab_of

LAB = lab_of("one-node")
GUEST = LAB.guests[0]
NIC = GUEST.nics[0]
BOUND = Bound(100.0, 50.0)


class _Node:
    """A node with counters: of frames from the guest, and of two rules of its switch."""

    name = "node"

    def __init__(self) -> None:
        self.counts = [(1000, 400, 100), (7000, 900, 250)]

    def read(self, _: str) -> str:
        offered, one, other = self.counts.pop(0)
        first = f"cookie=0x1, n_packets={one}, n_bytes=1 actions=drop"
        return f"{offered}\n {first}\n cookie=0x2, n_packets={other}, n_bytes=2 actions=drop"


def test_a_flood_is_what_was_counted_while_it_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    halted = threading.Event()
    asked: list[tuple[object, ...]] = []

    def awaited(_: object, taps: list[str], frames: float, patience: float, *, rate: float) -> None:
        asked.append((taps, frames, patience, rate))
        time.sleep(0.2)

    monkeypatch.setattr(flooding, "await_frames", awaited)
    found = flood(_Node(), NIC, halted.wait, halted.set, BOUND, 9.0)  # type: ignore[arg-type]
    assert found == Flood(6000, 650, found.seconds)
    assert 0.2 <= found.seconds < 60
    assert asked == [([NIC.tap], BOUND.within(flooding._HALTING), 9.0, 50.0)]
    assert halted.is_set()


def test_a_flood_that_is_too_small_is_halted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet(*_: object, **__: object) -> None:
        raise InstrumentError("too quiet", fact="-", remedy="-")

    halted = threading.Event()
    monkeypatch.setattr(flooding, "await_frames", quiet)
    assert flood(_Node(), NIC, halted.wait, halted.set, BOUND, 9.0).offered == 6000  # type: ignore[arg-type]


def test_a_bound_grows_with_time() -> None:
    assert BOUND.within(0) == 100
    assert BOUND.within(2) == 200
    assert BOUND.times(3) == Bound(300.0, 150.0)


def test_connections_are_those_of_a_port_with_a_zone() -> None:
    def read(command: str) -> str:
        if command == policing.TRACKING:
            return f'{{ct-zone-{NIC.port}="7", ct-zone-other="8"}}'
        return str(40 + ("zone=7 " in command))

    node: Any = SimpleNamespace(name="node", read=read)
    assert tracked(node, NIC) == 41
    with pytest.raises(InstrumentError, match="tracks nothing"):
        tracked(SimpleNamespace(name="node", read=lambda _: '{ct-zone-other="8"}'), NIC)  # type: ignore[arg-type]


class _LimitedNode:
    """A node that enforces the limits of its guests, but for differences of the first interface.

    Args:
        packets: the first interface's limit of packets.
        share: its limit of connections; 0 is no limit.
        more: connections that the node tracks beyond those of its guests.
        looks: looks at the limits until the first one of connections appears.
    """

    name = "node"

    def __init__(
        self, packets: int | None = None, share: int | None = None, more: int = 0, looks: int = 0
    ) -> None:
        nics = [(guest, nic) for guest in LAB.guests_on("node") for nic in guest.nics]
        rates = [guest.limits.packets for guest, _ in nics]
        shares = [guest.limits.connections for guest, _ in nics]
        self.most, self.looks = sum(shares) + more, looks
        rates[0] = rates[0] if packets is None else packets
        shares[0] = shares[0] if share is None else share
        self.filters = "\n".join(
            f"interface {nic.tap}\naction order 1:  police 0x{number} rate 0bit pkts_rate {rate} pkts_burst 1"
            for number, ((_, nic), rate) in enumerate(zip(nics, rates, strict=True), 1)
        )
        self.zones = ", ".join(f'ct-zone-{nic.port}="{number}"' for number, (_, nic) in enumerate(nics, 1))
        self.limits = [f"zone={number},limit={most},count=0" for number, most in enumerate(shares, 1) if most]

    def read(self, command: str) -> str:
        if command == FILTERS:
            return self.filters
        if command == policing.TRACKING:
            self.looks -= 1
            return "\n".join((f"{{{self.zones}}}", "default limit=0", *self.limits[self.looks >= 0 :]))
        assert "nf_conntrack_max" in command
        return str(self.most)


def _unlimited(node: _LimitedNode) -> list[str]:
    fleet: Any = SimpleNamespace(topology=LAB, machines={"node": node})
    return unlimited(fleet, "node")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flooding, "_SETTLING", 0.2)
    monkeypatch.setattr(flooding, "_AGAIN", 0.01)


def test_each_limit_of_the_kernel_is_the_declared_one() -> None:
    assert _unlimited(_LimitedNode()) == []
    assert _unlimited(_LimitedNode(more=1)) == []
    label = f"{GUEST.label}/{NIC.network}"
    for rate in (0, 7):
        assert _unlimited(_LimitedNode(packets=rate)) == [
            f"kernel: packets of {label} are limited to {rate} and not {GUEST.limits.packets}"
        ]
    for share in (0, 7):
        assert _unlimited(_LimitedNode(share=share)) == [
            f"kernel: connections of {label} are limited to {share} and not {GUEST.limits.connections}"
        ]
    (found,) = _unlimited(_LimitedNode(more=-1))
    assert "and its guests may have" in found


@pytest.mark.parametrize(("looks", "found"), [(0, 0), (3, 0), (1000, 1)])
def test_a_limit_that_the_switch_sets_late_is_waited_for(looks: int, found: int) -> None:
    findings = _unlimited(_LimitedNode(looks=looks))
    assert len(findings) == found
    assert all("are limited to 0 and not" in item for item in findings)


def test_a_guest_that_does_not_run_has_no_limits_to_look_at() -> None:
    node = _LimitedNode()
    node.filters = ""
    with pytest.raises(InstrumentError, match="does not run"):
        _unlimited(node)
