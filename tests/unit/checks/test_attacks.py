"""The attacks and the page that lists them."""

from __future__ import annotations

import re
from pathlib import Path
from socket import IPPROTO_ICMP, IPPROTO_UDP
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from checks import (
    test_disruptions,
    test_guest_services,
    test_guest_to_host,
    test_infrastructure_exposure,
    test_noisy_neighbour,
    test_overlay,
    test_ovn_databases,
    test_reachability,
    test_spoofing,
)
from checks.support.attacker_positions import positions
from checks.support.lease_requests import STARVATION, THEFT, thefts
from checks.support.spoofed_frames import forgeries
from testbed.model.reachability import ReachMatrix, endpoints
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read
from testbed.verify.check import ATTRIBUTE

ROOT = Path(__file__).parents[3]
TOPOLOGIES = sorted((ROOT / "topologies").glob("*.yaml"))


def _fleet(file: Path) -> Any:
    topology = resolve(read(file).spec)
    return SimpleNamespace(topology=topology, matrix=ReachMatrix.of(topology))


TOPOLOGY = pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)


@TOPOLOGY
def test_every_guest_attacks_in_every_way_that_it_can(topology: Path) -> None:
    """Each forgery has a mark of its own; a guest without a flow forges traffic of every guest."""
    fleet = _fleet(topology)
    forged = forgeries(fleet)
    assert len({forgery.mark for forgery in forged}) == len(forged)
    assert all(re.fullmatch("[a-z0-9]+", forgery.mark) for forgery in forged)
    for position in positions(fleet):
        own = {forgery.control for forgery in forged if forgery.sender == position.sender}
        assert own == {f"NET-{number:02}" for number in (2, 3, 4, 5, 6, 7, 8, 11)}


def test_lies_are_packets_of_the_flow_that_there_is() -> None:
    """Forgeries use UDP or ICMP where no flow of TCP is; without a flow, requests to DHCP."""
    fleet = _fleet(ROOT / "topologies/udp-and-icmp.yaml")
    kinds = {
        "red/web": (IPPROTO_UDP, 514),
        "blue/web": (IPPROTO_ICMP, None),
        "red/db": (IPPROTO_UDP, 67),
        "blue/db": (IPPROTO_UDP, 67),
    }
    for forgery in forgeries(fleet):
        if forgery.meaning == "a packet from a free address of its network":
            packet = Ether(forgery.frame(b"tb-0123abcd-x."))[IP]
            assert (packet.proto, packet[UDP].dport if UDP in packet else None) == kinds[forgery.sender.guest]


@TOPOLOGY
def test_only_false_senders_have_another_mac_address(topology: Path) -> None:
    """Every other forgery leaves with its own, so that it is not stopped for the wrong reason."""
    for forgery in forgeries(_fleet(topology)):
        own = Ether(forgery.frame(b"tb-0123abcd-x.")).src == forgery.sender.mac
        assert own == (forgery.control != "NET-02"), str(forgery)


@TOPOLOGY
def test_the_page_lists_every_attack_and_every_breach(topology: Path) -> None:
    """The page names the check of each frame, and the breaches of each check."""
    page = (ROOT / "docs/reference/attacks.md").read_text()
    rows: dict[str, str] = {}
    for line in page.splitlines():
        if line.startswith("| NET-"):
            rows[line[2:8]] = rows.get(line[2:8], "") + line
    heads = (
        "a packet",
        "an IPv6 packet",
        "an ARP reply in its network's name",
        "a DHCP offer to (its peer|everybody)",
        "a message",
        "a DHCPv6 advertisement to its peer",
        "Geneve",
        "VXLAN",
    )
    wrapped = "(a router advertisement|an advertisement of its peer's address) (?=behind|in)"
    short = re.compile(f"^({'|'.join(heads)}) |^{wrapped}")
    for forgery in forgeries(_fleet(topology)):
        assert re.sub(short, "", forgery.meaning) in rows[forgery.control] or "node" in forgery.meaning, (
            forgery.meaning
        )
    modules = (
        test_ovn_databases,
        test_disruptions,
        test_infrastructure_exposure,
        test_noisy_neighbour,
        test_reachability,
        test_guest_services,
        test_spoofing,
        test_overlay,
        test_guest_to_host,
    )
    for module in modules:
        for found in vars(module).values():
            declared = getattr(found, ATTRIBUTE, None)
            if declared is not None:
                assert [
                    breach.name for breach in declared.breaches if breach.name not in rows[declared.id]
                ] == []


@TOPOLOGY
def test_questions_to_dhcp_tell_their_answers_apart(topology: Path) -> None:
    """No two questions of one protocol share a transaction."""
    fleet = _fleet(topology)
    sent = [probe.frame(b"") for position in positions(fleet) for probe in thefts(position) if probe.frame]
    four = [frame[46:50] for frame in sent if frame[12:14] == b"\x08\0"]
    six = [frame[63:66] for frame in sent if frame[12:14] == b"\x86\xdd"]
    everyone = endpoints(fleet.topology)
    assert len(set(four)) == len(four) > 40 * len(everyone)
    assert len(set(six)) == len(six) >= 40 * len([item for item in everyone if item.address6])
    assert len(four) + len(six) == len(sent)


def test_requests_for_others_addresses_are_sent_twice() -> None:
    """Of the many for addresses of their own, one of which has to fail, each is sent once."""
    fleet = _fleet(ROOT / "topologies/three-tenants-dual-stack.yaml")
    probes = [probe for position in positions(fleet) for probe in thefts(position)]
    sent = {probe.mark[:4]: probe.fields.get("repeat", 1) for probe in probes}
    assert sent == {"thef": 2, "star": 1, f"six{THEFT}": 2, f"six{STARVATION}": 1}
    assert {probe.fields.get("repeat", 1) for probe in probes if probe.mark.startswith("theft")} == {2}
