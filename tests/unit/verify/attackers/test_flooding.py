"""Floods as a node's counters show them, and the limits in the node's kernel (NET-12)."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.plan import policing
from testbed.plan.resources import Key, Kind
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
        return f"{NIC.port} 7\nother 8" if "ct-zone-list" in command else str(40 + ("zone=7" in command))

    node: Any = SimpleNamespace(name="node", read=read)
    assert flooding.zones(node) == {NIC.port: 7, "other": 8}
    assert tracked(node, NIC) == 41
    with pytest.raises(InstrumentError, match="tracks nothing"):
        tracked(SimpleNamespace(name="node", read=lambda _: "other 8"), NIC)  # type: ignore[arg-type]


def _unlimited(
    monkeypatch: pytest.MonkeyPatch, packets: int | None = None, share: int | None = None, more: int = 0
) -> list[str]:
    """Return the findings about a node on which one limit of the first guest is different."""
    nics = [(guest, nic) for guest in LAB.guests_on("node") for nic in guest.nics]
    live = {
        Key("node", Kind.LIMIT, f"{guest.label}/{nic.network}"): {"packets": guest.limits.packets}
        for guest, nic in nics
    }
    if packets is not None:
        live[Key("node", Kind.LIMIT, f"{GUEST.label}/{NIC.network}")] = {"packets": packets}
    shares = [
        f"zone={number},limit={guest.limits.connections},count=0" for number, (guest, _) in enumerate(nics)
    ]
    if share is not None:
        shares[0] = f"zone=0,limit={share},count=0"
    whole = sum(guest.limits.connections for guest, _ in nics)
    answers = {"ct-zone-list": "\n".join(f"{nic.port} {number}" for number, (_, nic) in enumerate(nics)),
               "ct-get-limits": "\n".join(("default limit=0", *shares, str(whole + more)))}  # fmt: skip
    monkeypatch.setattr(policing, "observed", lambda *_: live)
    node = SimpleNamespace(
        name="node",
        read=lambda command: next((text for word, text in answers.items() if word in command), ""),
    )
    fleet: Any = SimpleNamespace(topology=LAB, machines={"node": node})
    return unlimited(fleet, "node")


def test_each_limit_of_the_kernel_is_the_declared_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _unlimited(monkeypatch) == []
    assert _unlimited(monkeypatch, more=1) == []
    label = f"{GUEST.label}/{NIC.network}"
    assert _unlimited(monkeypatch, packets=0) == [
        f"kernel: packets of {label} are limited to 0 and not {GUEST.limits.packets}"
    ]
    assert _unlimited(monkeypatch, share=7) == [
        f"kernel: connections of {label} are limited to 7 and not {GUEST.limits.connections}"
    ]
    (found,) = _unlimited(monkeypatch, more=-1)
    assert "and its guests may have" in found


class _LateSwitch:
    """A node whose kernel lacks the first guest's limit of connections for some looks."""

    name = "node"

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def read(self, command: str) -> str:
        nics = [(guest, nic) for guest in LAB.guests_on("node") for nic in guest.nics]
        if "ct-zone-list" in command:
            return "\n".join(f"{nic.port} {number}" for number, (_, nic) in enumerate(nics))
        if "ct-get-limits" not in command:
            return ""
        self.looks -= 1
        limits = [
            f"zone={number},limit={guest.limits.connections},count=0"
            for number, (guest, _) in enumerate(nics)
        ]
        return "\n".join((*limits[1 if self.looks >= 0 else 0 :], "65536"))


@pytest.mark.parametrize(("looks", "found"), [(0, 0), (3, 0), (1000, 1)])
def test_a_limit_that_the_switch_sets_late_is_waited_for(
    looks: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = {
        Key("node", Kind.LIMIT, f"{guest.label}/{nic.network}"): {"packets": guest.limits.packets}
        for guest in LAB.guests_on("node")
        for nic in guest.nics
    }
    monkeypatch.setattr(policing, "observed", lambda *_: live)
    monkeypatch.setattr(flooding, "_SETTLING", 0.2)
    monkeypatch.setattr(flooding, "_AGAIN", 0.01)
    fleet: Any = SimpleNamespace(topology=LAB, machines={"node": _LateSwitch(looks)})
    findings = unlimited(fleet, "node")
    assert len(findings) == found
    assert all("are limited to None and not" in item for item in findings)


def test_a_guest_that_does_not_run_has_no_limits_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policing, "observed", lambda *_: {})
    fleet: Any = SimpleNamespace(
        topology=LAB, machines={"node": SimpleNamespace(name="node", read=lambda _: "1")}
    )
    with pytest.raises(InstrumentError, match="does not run"):
        unlimited(fleet, "node")
