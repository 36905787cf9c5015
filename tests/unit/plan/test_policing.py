"""Limits of guests' interfaces: from the file to the node, and when they are exceeded."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from checks import test_noisy_neighbour
from checks.support.flood_scenario import (
    CALM_BEATS,
    FLOOD_BEATS,
    LATER_BEATS,
    FloodOutcome,
    Noise,
    _connections,
    exceeded_limits,
    heart,
    noise_of,
)
from checks.test_noisy_neighbour import _weak
from testbed.errors import InstrumentError
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.plan import policing
from testbed.plan.resources import Kind
from testbed.topology_file.quantities import parse_bandwidth, parse_packets
from testbed.topology_file.schema import Spec
from testbed.verify.attackers.flooding import Flood
from testbed.verify.observation.arrivals import Observation
from testbed.verify.probe.tokens import Tokens
from tests.shapes import lab_of


def _lab(tenant: dict[str, object], guest: dict[str, object]) -> Topology:
    red = {
        "networks": {"app": "10.0.0.0/24"},
        "guests": {"web": {"limits": guest}, "db": {}},
        "limits": tenant,
    }
    return resolve(
        Spec.model_validate({"version": 1, "name": "x", "nodes": {"node": {}}, "tenants": {"red": red}})
    )


def test_a_guest_comes_before_its_tenant_and_the_tenant_before_the_defaults() -> None:
    web, db = _lab({"bandwidth": "1 Gbit/s", "packets": "2000/s"}, {"packets": "7000/s"}).guests
    assert (web.limits.bandwidth, web.limits.packets) == (10**9, 7000)
    assert (db.limits.bandwidth, db.limits.packets) == (10**9, 2000)
    assert web.limits.connections == db.limits.connections > 0


@pytest.mark.parametrize("text", ["50", "0 Mbit/s", "50 MB/s", "1.5 Mbit/s", 50])
def test_a_bandwidth_has_a_unit(text: object) -> None:
    with pytest.raises(ValueError, match="is not a bandwidth; write"):
        parse_bandwidth(text)


@pytest.mark.parametrize("text", ["2000", "1500/s", "0/s", "000/s", 2000])
def test_a_packet_rate_is_in_thousands(text: object) -> None:
    with pytest.raises(ValueError, match="is not a packet rate; write"):
        parse_packets(text)


def test_no_limit_is_no_limit() -> None:
    """There is no way to ask for less than a few connections, or for more than a node tracks."""
    for connections in (0, 15, 65537):
        with pytest.raises(ValidationError):
            _lab({}, {"connections": connections})


def test_a_piece_of_64_kib_always_fits_into_a_burst() -> None:
    assert _lab({}, {"bandwidth": "1 kbit/s"}).guests[0].limits.burst >= 64 * 1024 * 8


def test_what_the_kernel_limits_is_read_for_our_interfaces_only() -> None:
    lab = _lab({}, {})
    web, db = (guest.nics[0].tap for guest in lab.guests)
    police = (
        "\taction order 1:  police 0x1 rate 0bit burst 0b mtu 64Kb pkts_rate {} pkts_burst 1000 action "
        "drop/continue overhead 0b"
    )
    names = f"interface {web}\ninterface {db}\ninterface tap*"
    ours, foreign = (
        f"interface {web}\n{police.format(1000)}",
        f"interface tap00000000\nan error: of tc\n{police.format(9000)}",
    )
    text = f"{names}\n{ours}\n{foreign}\n"
    ports = [guest.nics[0].port for guest in lab.guests]
    zones = f'{{ct-zone-{ports[0]}="5", "ct-zone-red/app_snat"="6", ct-zone-{ports[1]}="15", start="5"}}'
    limits = "default limit=3\nzone=5,limit=64,count=2\nzone=6,limit=7,count=0\nzone=1,limit=9,count=0"
    found = policing.observed("node", lab.guests, text, f"{zones}\n{limits}")
    assert {key.name: item for key, item in found.items()} == {
        "red/web/app": {"packets": 1000, "connections": 64},
        "red/db/app": {"packets": 0, "connections": 0},
    }
    assert policing.zones(zones) == {ports[0]: 5, "red/app_snat": 6, ports[1]: 15}
    assert {key.kind for key in found} == {Kind.LIMIT}


def test_a_switch_is_told_thousands() -> None:
    assert (
        policing.limit(["tap1"], 2000)
        == "ovs-vsctl set interface tap1 ingress_policing_kpkts_rate=2 ingress_policing_kpkts_burst=2"
    )
    assert "rate=0" in policing.limit(["tap1"], 0)


# Programs of a node, with a zone and a limit in files; the limit appears in the kernel after some looks.
_PROGRAMS = {
    "ovs-vsctl": """
        case "$*" in
        *external_ids:ct-zone-port) cat zone ;;
        "--if-exists del-zone-limit system 5") rm -f limit; echo deleted >> log ;;
        "set-zone-limit system 5 "*) echo "$4" > limit; echo "set $4" >> log ;;
        *) exit 1 ;;
        esac""",
    "ovs-appctl": """
        [ "$*" = "dpctl/ct-get-limits zone=5" ] || exit 1
        echo look >> log
        [ ! -s late ] || { sed -i 1d late; echo "zone=5,limit=0,count=0"; exit; }
        [ ! -f limit ] || echo "zone=5,limit=$(cat limit),count=0" """,
    "sleep": "",
}


@pytest.mark.parametrize(
    ("zone", "limit", "late", "log", "status"),
    [
        ("5", "64", 0, ["look"], 0),
        ("5", "64", 3, ["look"] * 4, 0),  # OVN asks for it meanwhile
        ("5", "6", 0, ["look"] * 10 + ["deleted", "set 64"], 0),
        ("5", "", 0, ["look"] * 10 + ["deleted", "set 64"], 0),
        ("", "", 0, [], 1),  # no port is bound
    ],
)
def test_a_limit_of_connections_that_the_switch_lacks_is_set(
    zone: str, limit: str, late: int, log: list[str], status: int, tmp_path: Path
) -> None:
    for name, text in _PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "zone").write_text(f'"{zone}"\n' if zone else "\n")
    (tmp_path / "late").write_text("no limit yet\n" * late)
    (tmp_path / "log").touch()
    if limit:
        (tmp_path / "limit").write_text(limit)
    done = subprocess.run(
        ["sh", "-c", policing.settle("port", 64)],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert (tmp_path / "log").read_text().splitlines() == log
    if status:
        assert "the port port has no zone of connection tracking" in done.stderr
    else:
        assert (tmp_path / "limit").read_text().strip() == "64"


def _noise(*flows: str) -> Noise:
    limited = {"bandwidth": "4 Mbit/s", "packets": "1000/s", "connections": 100}
    red = {
        "networks": {"app": "10.0.0.0/24"},
        "guests": {"web": {"limits": limited}, "db": {}},
        "allow": flows,
    }
    topology = resolve(
        Spec.model_validate({"version": 1, "name": "x", "nodes": {"node": {}}, "tenants": {"red": red}})
    )
    return noise_of(SimpleNamespace(topology=topology))  # type: ignore[arg-type]


_HELD = FloodOutcome(
    opening=200,
    tracked=100,
    large=Flood(12_000, 5000, 4.0),
    delivered=2_000_000,
    small=Flood(12_000, 5000, 4.0),
    sent=[200, 12_000, 12_000],
)


def test_noise_within_its_limits_is_none() -> None:
    assert exceeded_limits(_noise(), _HELD) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(_HELD, tracked=120), "connections are tracked"),
        (replace(_HELD, delivered=4_000_000), "octets of large frames"),
        (replace(_HELD, small=Flood(12_000, 9000, 4.0)), "small frames"),
    ],
)
def test_each_limit_that_is_passed_is_told(found: FloodOutcome, words: str) -> None:
    (told,) = exceeded_limits(_noise(), found)
    assert words in told


@pytest.mark.parametrize(
    "found",
    [
        replace(_HELD, opening=100),
        replace(_HELD, sent=[100, 12_000, 12_000]),
        replace(_HELD, small=Flood(4000, 4000, 4.0)),
        replace(_HELD, large=Flood(1000, 1000, 4.0)),
        replace(_HELD, tracked=79),
        replace(_HELD, delivered=0),
    ],
)
def test_noise_that_meets_no_limit_says_nothing(found: FloodOutcome) -> None:
    assert _weak(_noise("web -> db tcp/5432"), found)
    assert not _weak(_noise("web -> db tcp/5432"), _HELD)


_QUIET = {CALM_BEATS: 20, FLOOD_BEATS: 40, LATER_BEATS: 20}


def _seen(**arrived: int) -> Observation:
    """Return a victim's observation: answers before, during and after floods."""
    counts = {
        CALM_BEATS: arrived.get("calm", 20),
        FLOOD_BEATS: arrived.get("loud", 40),
        LATER_BEATS: arrived.get("later", 20),
    }
    tokens = [
        (f"{beats:02x}{number:06x}", number / 4) for beats, count in counts.items() for number in range(count)
    ]
    records = [{"kind": "dhcp", "token": token, "at": at} for token, at in tokens]
    heard = {_noise("web -> db tcp/5432").victim.guest: records}
    return Observation(Tokens("tb-", b"key"), heard, {}, told=heard)


class _Looks:
    """Observations of floods, one after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *looks: tuple[FloodOutcome, Observation]) -> None:
        self.looks = list(looks)
        monkeypatch.setattr(test_noisy_neighbour, "noise_of", lambda _: _noise("web -> db tcp/5432"))
        monkeypatch.setattr(test_noisy_neighbour, "flooded", lambda *_: self.looks.pop(0))
        fleet: Any = SimpleNamespace(evidence=SimpleNamespace(record=lambda *_: None))
        self.judge = partial(test_noisy_neighbour.test_a_flood_stays_within_its_limits, fleet=fleet)


_KEPT = replace(_HELD, asked=_QUIET)


def test_a_victim_that_feels_nothing_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = _Looks(monkeypatch, (_KEPT, _seen(loud=30)), (_KEPT, _seen(loud=0)))
    looks.judge()
    assert len(looks.looks) == 1


def test_a_heartbeat_that_is_lost_once_is_slowness_and_twice_is_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    _Looks(monkeypatch, (_KEPT, _seen(loud=10)), (_KEPT, _seen())).judge()
    with pytest.raises(AssertionError, match="loses its heartbeat, twice"):
        _Looks(monkeypatch, (_KEPT, _seen(loud=10)), (_KEPT, _seen(loud=10))).judge()


@pytest.mark.parametrize("ill", [{"calm": 17}, {"later": 10}, {"calm": 0, "later": 0}])
def test_a_busy_machine_tells_nothing_of_floods(monkeypatch: pytest.MonkeyPatch, ill: dict[str, int]) -> None:
    """A victim that loses beats in calm, before or after, is no evidence about a flood.

    It does not matter whether it loses more during the flood.
    """
    for loud in (0, 10, 40):
        with pytest.raises(InstrumentError, match="without any flood"):
            _Looks(monkeypatch, *[(_KEPT, _seen(loud=loud, **ill))] * 2).judge()


def test_a_limit_that_is_passed_is_told_whatever_the_heart_says(monkeypatch: pytest.MonkeyPatch) -> None:
    past = replace(_KEPT, tracked=500)
    with pytest.raises(AssertionError, match="connections are tracked"):
        _Looks(monkeypatch, (replace(past, asked={}), _seen(calm=0, loud=0, later=0))).judge()


def test_more_beats_than_questions_are_no_heart() -> None:
    with pytest.raises(InstrumentError, match="20 answers to 19 questions"):
        heart(_seen(), _noise("web -> db tcp/5432").victim, {**_QUIET, CALM_BEATS: 19})


def test_a_second_policer_hides_no_first_one() -> None:
    """The order in which the kernel prints them does not matter."""
    lab = _lab({}, {})
    tap = lab.guests[0].nics[0].tap
    for rates in ((9000, 1000), (1000, 9000)):
        policers = [
            f"police 0x{number} rate 0bit pkts_rate {rate} pkts_burst 1000"
            for number, rate in enumerate(rates)
        ]
        text = "\n".join(
            (f"interface {tap}", *policers, *policers)
        )  # each is printed with the filters of both directions
        found = policing.observed("node", lab.guests, text, "")
        assert [item["packets"] for item in found.values()] == [10_000]


def test_without_a_flow_the_limit_of_packets_is_what_noise_can_meet() -> None:
    """Nothing that counts for the other limits is let through."""
    small = FloodOutcome(small=_HELD.small, sent=[12_000])
    assert not _weak(_noise(), small)
    assert _weak(_noise("web -> db icmp"), small)
    assert _weak(_noise(), replace(small, small=Flood(4000, 4000, 4.0)))
    assert "small frames" in exceeded_limits(_noise(), replace(small, small=Flood(12_000, 9000, 4.0)))[0]


@pytest.mark.parametrize(("service", "kind"), [("tcp/5432", TCP), ("udp/53", UDP), ("icmp", ICMP)])
def test_connections_are_of_the_flow_that_is_declared(service: str, kind: type[Packet]) -> None:
    """Twice as many as there may be, each of them another one to the kernel."""
    opening, closing = _connections(_noise(f"web -> db {service}"))
    found = [Ether(frame)[kind] for frame in opening]
    assert len({item.id if kind is ICMP else item.sport for item in found}) == len(found) == 200
    assert {item.type if kind is ICMP else item.dport for item in found} == {
        {TCP: 5432, UDP: 53, ICMP: 8}[kind]
    }
    assert len(closing) == (200 if kind is TCP else 0)


def test_who_suffers_is_of_another_tenant_where_one_is_near() -> None:
    def victim(shape: str) -> str | None:
        noise = noise_of(SimpleNamespace(topology=lab_of(shape)))  # type: ignore[arg-type]
        return noise.victim.guest if noise.victim else None

    assert victim("two-tenants") == "blue/db"
    assert victim("separated") == "red/db"
    assert victim("one tenant on two nodes") is None
    assert victim("one guest") is None
