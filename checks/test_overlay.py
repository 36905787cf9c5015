"""Tunnels between nodes, attacked from the fabric by a host that is not a node (NET-08)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from checks.support.breaches import shell_breach
from checks.support.tunnel_frames import Injection, Inner, injections, inners
from testbed import timeouts
from testbed.errors import InstrumentError
from testbed.model.exposure import GENEVE, ExposureCell, InfraEndpoint, machines
from testbed.model.topology import Plane
from testbed.verify.attackers.service_scan import question, rogue_host_on
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.observation.arrivals import Observation
from testbed.verify.observation.observe import Attack, observe
from testbed.verify.observation.tap_witness import require_agreement
from testbed.verify.probe.client import ProbeClient, inconclusive, listed, on_machine
from testbed.verify.probe.requests import Knock, Send
from testbed.verify.probe.tokens import Tokens
from testbed.verify.witnesses.firewall_log import ledgers

_SECONDS = timeouts.OVERLAY
_FIREWALL = "nft -f /etc/nftables.conf"


@dataclass(frozen=True, slots=True)
class _Injected:
    """The result of all injected frames.

    Args:
        refused: marks of the frames that the node's firewall refused.
    """

    injections: tuple[Injection, ...]
    observation: Observation
    refused: frozenset[str]


def needs_peers(context: BreachContext) -> str | None:
    """Return why a fleet has no tunnels to attack, or None."""
    return (
        None
        if len(context.topology.nodes) > 1
        else "the fleet has one node, so there are no tunnels between nodes"
    )


def _policies(machine: MachineView) -> list[str]:
    """Return the kernel's IPsec policies, one a line."""
    return machine.read("ip -o xfrm policy").splitlines()


def _everywhere(context: BreachContext, commands: str) -> None:
    for node in context.lab.nodes.values():
        node.host.must(commands)


# The rule that refuses tunnelled packets which came without IPsec.
_HANDLE = "$(nft -a list chain inet testbed input | sed -n 's/.*missing goto refuse # handle //p')"
_TAKE = f"nft delete rule inet testbed input handle {_HANDLE}"
_SHUT = "nft list chain inet testbed input | grep -q 'missing goto refuse'"


def _unprotected(name: str) -> Breach:
    """Return a breach by tunnels without IPsec, which check only a node's address."""
    return Breach(
        name,
        open=lambda context: _everywhere(context, f"{_TAKE}; systemctl stop strongswan"),
        close=lambda context: _everywhere(context, f"systemctl start strongswan; {_FIREWALL}"),
        in_force=lambda context: (
            context.host.sudo(f"systemctl is-active strongswan || ! {_SHUT}").text.strip() == "inactive"
        ),
    )


def _bypass(context: BreachContext) -> str:
    peer = next(node for node in context.topology.nodes if node.name != context.node.name)
    own = context.topology.machine(context.node.name)
    return f"src {peer.address(Plane.FABRIC)} dst {own.address(Plane.FABRIC)} proto udp dport 6081 dir in"


@check(
    id="NET-08",
    objective=(
        "No host on the fabric that is not a node gets a frame into a tenant's network, whatever it claims "
        "to be"
    ),
    severity="critical",
    effect=Effect.PROBES,
    applies=needs_peers,
    breaches=(
        _unprotected("tunnels between nodes are in the clear"),
        shell_breach(
            "a node takes tunnelled frames in the clear",
            opens=lambda _: _TAKE,
            closes=lambda _: _FIREWALL,
            shows=lambda _: f"! {_SHUT}",
        ),
        shell_breach(
            "a node takes tunnelled frames from any address",
            opens=lambda _: 'nft insert rule inet testbed input iifname "fabric0" udp dport 6081 accept',
            closes=lambda _: _FIREWALL,
            shows=lambda _: "nft list chain inet testbed input | grep -q '\"fabric0\" udp dport 6081 accept'",
        ),
        shell_breach(
            "a node's kernel lets tunnelled frames of a peer pass in the clear",
            opens=lambda context: f"ip xfrm policy add {_bypass(context)} priority 1 action allow",
            closes=lambda context: f"while ip xfrm policy delete {_bypass(context)} 2>/dev/null; do :; done",
            shows=lambda context: f"ip xfrm policy get {_bypass(context)}",
        ),
    ),
)
def test_no_other_host_enters_the_tunnels(fleet: Fleet) -> None:
    found = fleet.observe_once("injection", lambda: _inject(fleet))
    sightings = ((item, found.observation.arrivals(item.mark)) for item in found.injections)
    arrived = [f"{item} arrived at {', '.join(seen.values())}" for item, seen in sightings if seen]
    assert not arrived, f"{len(arrived)} injected frames arrived: {'; '.join(arrived[:4])}"
    taken = [str(item) for item in found.injections if item.mark not in found.refused]
    assert not taken, (
        f"{len(taken)} of {len(found.injections)} were not refused by the firewall: {'; '.join(taken[:4])}"
    )
    require_agreement(found.observation, {item.mark for item in found.injections})
    open_ = [text for node in fleet.topology.nodes for text in _unencrypted(fleet, fleet.machines[node.name])]
    assert not open_, f"the kernel does not ask for encryption: {'; '.join(open_[:4])}"


def _unencrypted(fleet: Fleet, machine: MachineView) -> list[str]:
    """Return the peers with which a node's kernel would exchange tunnelled packets in the clear."""
    own, lines = fleet.topology.machine(machine.name).address(Plane.FABRIC), _policies(machine)
    peers = [node.address(Plane.FABRIC) for node in fleet.topology.nodes if node.name != machine.name]
    found = []
    for peer in peers:
        for way, ends in (
            ("in", f"src {peer}/32 dst {own}/32 proto udp"),
            ("out", f"src {own}/32 dst {peer}/32 proto udp"),
        ):
            policies = [line for line in lines if line.startswith(ends) and f"dir {way} " in line]
            protected = [line for line in policies if "proto esp" in line and "mode transport" in line]
            if not policies or policies != protected:
                found.append(
                    f"{machine.name}, {way}, {peer}: {len(policies)} policies, {len(protected)} of "
                    "them for ESP"
                )
    return found


def _inject(fleet: Fleet) -> _Injected:
    inner = list(inners(fleet))
    network = fleet.topology.lab_network(Plane.FABRIC)
    found: list[Injection] = []
    refused: set[str] = set()
    with rogue_host_on(fleet, network) as (host, probe):

        def meanwhile(tokens: Tokens) -> None:
            found.extend(injections(fleet, host.site, inner, tokens))
            _from_peers(fleet, inner, tokens, "before")
            refused.update(_from_rogue(fleet, host.site, probe, found))
            _from_peers(fleet, inner, tokens, "after")

        observation = observe(fleet, (), Attack((), _SECONDS, meanwhile), doubts=True)
    for item in inner:
        for stage in ("before", "after"):
            arrived = observation.arrived(f"{item.mark}{stage}", item.target.guest)
            if item.flows and not arrived:
                what = (
                    f"what a node itself sends through its tunnel does not arrive at {item.target.label} "
                    f"{stage} the injection"
                )
                raise InstrumentError(
                    what,
                    fact=f"so the silence after {item.mark} of a foreign host means nothing",
                    remedy="run `testbed status`",
                )
    return _Injected(tuple(found), observation, frozenset(refused))


def _from_peers(fleet: Fleet, inner: list[Inner], tokens: Tokens, stage: str) -> None:
    """Let nodes send the same frames through their own tunnels, as positive controls.

    A node that an attacker controls could send the same frames.
    """
    places = {guest.label: guest.node for guest in fleet.topology.guests}
    sites = {site.name: site for site in machines(fleet.topology) if site.plane is Plane.FABRIC}
    scripts: dict[str, list[Mapping[str, object]]] = {}
    for item in inner:
        node = sites[item.node]
        peer = sites.get(places[item.source.guest], node)
        peer = peer if peer != node else next(site for site in sites.values() if site != node)
        cell = ExposureCell(peer, node, node.address, "udp", GENEVE, True, "-")
        payload = bytes(item.geneve(tokens.of(f"{item.mark}{stage}").encode()))
        scripts.setdefault(peer.name, []).append({**question(cell, item.mark), "frame": payload.hex()})

    def ask(name: str) -> None:
        on_machine(fleet, fleet.machines[name]).listen(Knock(phase="knock", window=2, probes=scripts[name]))

    with ThreadPoolExecutor(max_workers=len(scripts)) as pool:
        list(pool.map(ask, scripts))


def _from_rogue(
    fleet: Fleet, stranger: InfraEndpoint, probe: ProbeClient, injections: Sequence[Injection]
) -> set[str]:
    """Send all injections from the fabric; return the marks of the refused ones.

    Before and after them, nodes must answer the sender's ARP.
    """
    nodes = [site for site in machines(fleet.topology) if site.plane is Plane.FABRIC]
    hello = [
        question(ExposureCell(stranger, site, site.address, "arp", None, True, "-"), site.name)
        for site in nodes
    ]
    script = [
        {
            "id": f"{item.mark}p{number}",
            "mac": stranger.mac,
            "kind": "frame",
            "frame": octets.hex(),
            "repeat": 1,
        }
        for item in injections
        for number, octets in enumerate(item.packets)
    ]
    started = time.monotonic()
    for stage in ("before", "after"):
        heard = listed(probe.ask(Knock(phase="knock", window=3, probes=hello)), "results")
        if len(heard) != len(nodes) or any(item.get("state") != "open" for item in heard):
            raise inconclusive(f"not every node hears the rogue host {stage} the injection", str(heard)[:300])
        if stage == "before":
            sent = listed(probe.ask(Send(phase="send", probes=script)), "results")
            unsent = [item for item in sent if item.get("sent") is not True]
            if unsent or len(sent) != len(script):
                raise inconclusive("the rogue host could not send everything", str(unsent)[:300])
    told, seconds = ledgers(fleet), time.monotonic() - started
    for name, ledger in told.items():
        if ledger.full:
            raise inconclusive(f"{name} may have refused more than it tells", ledger.full)
    return {
        item.mark
        for item in injections
        if told[item.node].refuses(item.source, item.target, "udp", item.port, seconds)
    }
