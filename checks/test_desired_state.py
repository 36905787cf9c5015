"""Everything that can be read of a lab, compared with its topology: nothing is sent, and nothing changes."""

from __future__ import annotations

from checks.support.breaches import command, controller, where
from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.plan import policing
from testbed.plan.host_config.settings import KERNEL
from testbed.plan.ovn_acls import Acl
from testbed.verify import drift
from testbed.verify.breach_context import Host, Stage
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet

_SHOWN = 6
_EXTRA = Acl("to-lport", 2000, "icmp4", "allow")
_BALANCER = "undeclared"
_FORWARD = "net.ipv4.ip_forward"
# The kernel sets others when this one changes, such as accept_redirects (ip-sysctl.rst, ip_forward).
_CLOSED = " ".join(f"{name}={value}" for name, value in KERNEL.items())


def _guest(stage: Stage) -> Guest:
    return stage.testbed.guests[0]


def _has_guest(stage: Stage) -> bool:
    return bool(stage.testbed.guests)


def _node(stage: Stage) -> Host:
    return stage.lab.host(_guest(stage).node)


def _switch(stage: Stage) -> str:
    return next(stage.testbed.switches()).label


def _limit(stage: Stage, packets: int) -> str:
    taps = [_guest(stage).nics[0].tap]
    return f"{policing.limit(taps, 0)} && {policing.limit(taps, packets)}"


@check(
    id="VMM-04",
    objective=(
        "The live configuration is what the topology says: machines, networks, rules, volumes, guests, "
        "settings and limits"
    ),
    severity="high",
    effect=Effect.OBSERVES,
    breaches=(
        command(
            "a node forwards packets between its networks",
            opens=lambda _: f"sysctl -q -w {_FORWARD}=1",
            closes=lambda _: f"sysctl -q -w {_CLOSED}",
            shows=lambda _: f"[ $(sysctl -n {_FORWARD}) = 1 ]",
        ),
        command(
            "the controller answers for its addresses on every network",
            opens=lambda _: "sysctl -q -w net.ipv4.conf.all.arp_ignore=0",
            closes=lambda _: "sysctl -q -w net.ipv4.conf.all.arp_ignore=2",
            shows=lambda _: "[ $(sysctl -n net.ipv4.conf.all.arp_ignore) = 0 ]",
            where=controller,
        ),
        command(
            "OVN has a load balancer that no topology knows",
            opens=lambda _: f"ovn-nbctl --wait=hv lb-add {_BALANCER} 192.0.2.9:80 192.0.2.10:80",
            closes=lambda _: f"ovn-nbctl --wait=hv --if-exists lb-del {_BALANCER}",
            shows=lambda _: f"ovn-nbctl lb-list | grep -q {_BALANCER}",
            where=controller,
        ),
        *where(
            lambda stage: any(True for _ in stage.testbed.switches()),
            Breach(
                "a network has a rule that no flow asks for",
                open=lambda stage: stage.northbound.change_rules(_switch(stage), (), (_EXTRA,)),
                close=lambda stage: stage.northbound.change_rules(_switch(stage), (_EXTRA,), ()),
                in_force=lambda stage: str(_EXTRA) in stage.northbound.switches()[_switch(stage)]["acls"],
            ),
        ),
        *where(
            _has_guest,
            command(
                "every account may read a guest's disk",
                opens=lambda s: f"chmod 0644 {_guest(s).root_disk}",
                closes=lambda s: f"chmod 0600 {_guest(s).root_disk}",
                shows=lambda s: f"[ $(stat -c %a {_guest(s).root_disk}) = 644 ]",
                where=_node,
            ),
            command(
                "a guest may send any number of packets",
                opens=lambda s: _limit(s, 0),
                closes=lambda s: _limit(s, _guest(s).limits.packets),
                shows=lambda s: (
                    f"! tc filter show dev {_guest(s).nics[0].tap} parent ffff: | grep -q pkts_rate"
                ),
                where=_node,
            ),
        ),
    ),
)
def test_configuration_is_what_the_topology_says(fleet: Fleet) -> None:
    found = drift.state(fleet)
    told = drift.in_words(fleet, found.open())
    assert not told, "\n".join((f"{len(told)} things are not as the topology says:", *told[:_SHOWN]))
    if found.blind:
        fact = "; ".join(f"{place}: {why}" for place, why in found.blind.items())
        raise InstrumentError(
            f"{', '.join(found.blind)} could not be looked at", fact=fact, remedy="run `testbed status`"
        )
    idle = drift.in_words(fleet, found.idle())
    if idle:
        raise InstrumentError(
            f"{len(idle)} things do not run", fact="; ".join(idle[:_SHOWN]), remedy="run `testbed up`"
        )
