"""The readable state of a lab, compared with its topology: the check changes nothing."""

from __future__ import annotations

from checks.support.breaches import controller, mode_breach, shell_breach, where
from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.plan import policing
from testbed.plan.host_config.settings import KERNEL
from testbed.plan.ovn_acls import Acl
from testbed.verify import drift
from testbed.verify.breach_context import BreachContext, Host
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet

_SHOWN = 6
_EXTRA = Acl("to-lport", 2000, "icmp4", "allow")
_BALANCER = "undeclared"
_FORWARD = "net.ipv4.ip_forward"
# A change of `ip_forward` resets other parameters, such as accept_redirects (ip-sysctl.rst, ip_forward).
_CLOSED = " ".join(f"{name}={value}" for name, value in KERNEL.items())


def _guest(context: BreachContext) -> Guest:
    return context.topology.guests[0]


def _has_guest(context: BreachContext) -> bool:
    return bool(context.topology.guests)


def _node(context: BreachContext) -> Host:
    return context.lab.host(_guest(context).node)


def _switch(context: BreachContext) -> str:
    return next(context.topology.switches()).label


def _limit(context: BreachContext, packets: int) -> str:
    taps = [_guest(context).nics[0].tap]
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
        shell_breach(
            "a node forwards packets between its networks",
            opens=lambda _: f"sysctl -q -w {_FORWARD}=1",
            closes=lambda _: f"sysctl -q -w {_CLOSED}",
            shows=lambda _: f"[ $(sysctl -n {_FORWARD}) = 1 ]",
        ),
        shell_breach(
            "the controller answers for its addresses on every network",
            opens=lambda _: "sysctl -q -w net.ipv4.conf.all.arp_ignore=0",
            closes=lambda _: "sysctl -q -w net.ipv4.conf.all.arp_ignore=2",
            shows=lambda _: "[ $(sysctl -n net.ipv4.conf.all.arp_ignore) = 0 ]",
            where=controller,
        ),
        shell_breach(
            "OVN has a load balancer that no topology knows",
            opens=lambda _: f"ovn-nbctl --wait=hv lb-add {_BALANCER} 192.0.2.9:80 192.0.2.10:80",
            closes=lambda _: f"ovn-nbctl --wait=hv --if-exists lb-del {_BALANCER}",
            shows=lambda _: f"ovn-nbctl lb-list | grep -q {_BALANCER}",
            where=controller,
        ),
        *where(
            lambda context: any(True for _ in context.topology.switches()),
            Breach(
                "a network has a rule that no flow asks for",
                open=lambda context: context.northbound.change_rules(_switch(context), (), (_EXTRA,)),
                close=lambda context: context.northbound.change_rules(_switch(context), (_EXTRA,), ()),
                in_force=lambda context: (
                    str(_EXTRA) in context.northbound.switches()[_switch(context)]["acls"]
                ),
            ),
        ),
        *where(
            _has_guest,
            mode_breach(
                "every account may read a guest's disk",
                lambda context: _guest(context).root_disk,
                opened="644",
                shut="600",
                where=_node,
            ),
            shell_breach(
                "a guest may send any number of packets",
                opens=lambda context: _limit(context, 0),
                closes=lambda context: _limit(context, _guest(context).limits.packets),
                shows=lambda context: (
                    f"! tc filter show dev {_guest(context).nics[0].tap} parent ffff: | grep -q pkts_rate"
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
