"""The machines' services, scanned from rogue hosts and from one another (NET-09)."""

from __future__ import annotations

import time

from checks.support.breaches import controller, shell_breach
from testbed.errors import InstrumentError
from testbed.model.exposure import rogue
from testbed.model.topology import Plane
from testbed.verify.attackers.service_scan import scan_all
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet

_FIREWALL = "nft -f /etc/nftables.conf"


def _accepted(name: str, rule: str) -> Breach:
    """Return a breach by an accepting rule before all others of a node's firewall."""
    return shell_breach(
        name,
        opens=lambda _: f"nft insert rule inet testbed input {rule} accept",
        closes=lambda _: _FIREWALL,
        shows=lambda _: f"nft -n list chain inet testbed input | grep -q '^\t\t{rule} accept$'",
    )


def _stranger(context: BreachContext) -> str:
    return str(rogue(context.topology.lab_network(Plane.MANAGEMENT)).address)


_ARP = "sysctl -q -w net.ipv4.conf.all.arp_ignore"


@check(
    id="NET-09",
    objective=(
        "The machines of the fleet offer exactly what they must, and to whom they must: to administrators, "
        "peers and nodes"
    ),
    severity="critical",
    effect=Effect.PROBES,
    breaches=(
        _accepted(
            "a node takes logins from any host on its management network",
            'iifname "management0" tcp dport 22',
        ),
        _accepted("a node takes everything that comes in on the fabric", 'iifname "fabric0"'),
        shell_breach(
            "a host that is no node may talk to the controller's database",
            opens=lambda context: (
                f"nft add element inet testbed southbound_clients '{{ {_stranger(context)} }}'"
            ),
            closes=lambda context: (
                f"nft destroy element inet testbed southbound_clients '{{ {_stranger(context)} }}'"
            ),
            shows=lambda context: (
                f"nft get element inet testbed southbound_clients '{{ {_stranger(context)} }}'"
            ),
            where=controller,
        ),
        shell_breach(
            "a node answers for its addresses on every network",
            opens=lambda _: f"{_ARP}=0",
            closes=lambda _: f"{_ARP}=2",
            shows=lambda _: "[ $(sysctl -n net.ipv4.conf.all.arp_ignore) = 0 ]",
        ),
    ),
)
def test_machines_offer_what_they_must(fleet: Fleet) -> None:
    found = fleet.observe_once("surroundings", lambda: scan_all(fleet))
    fleet.evidence.record(
        "fleet", "surroundings", f"{len(found)} cells", "\n".join(map(str, found)), time.time()
    )
    for item in found:
        fleet.record_state(item.cell, arrived=item.reached)
    open_ = [str(item) for item in found if item.reached and not item.cell.allowed]
    assert not open_, (
        f"{len(open_)} of {len(found)} questions should not have been answered: {'; '.join(open_[:6])}"
    )
    dead = [str(item) for item in found if item.cell.allowed and not item.reached and not item.blind]
    assert not dead, f"{len(dead)} services are not there for whom they are: {'; '.join(dead[:6])}"
    unclear = [str(item) for item in found if item.unclear]
    if unclear:
        what = f"{len(unclear)} of {len(found)} questions were neither answered nor refused"
        raise InstrumentError(what, fact="; ".join(unclear[:6]), remedy="repeat the check")
