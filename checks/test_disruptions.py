"""Walls during disruptions: guests attack while services restart and rules change (NET-13)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import NAMESPACE_OID, uuid5

from checks.support.breaches import (
    ALLOW_ALL,
    TABLE,
    acl_breach,
    has_pair,
    has_sharers,
    mirrored,
    needs_company,
    needs_flow,
    shell_breach,
    where,
)
from checks.support.disruptions import (
    EARLY,
    LATE,
    controller_reboot,
    new_guest,
    node_reboot,
    rule_removal,
    service_restarts,
)
from checks.support.flow_shortcuts import for_a_while, shortcut
from testbed.errors import InstrumentError
from testbed.model.subjects import Pair, leaver, pair
from testbed.plan.ovn_acls import Acl
from testbed.untrusted import bounded_json
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.virtual_switch import rows

_DROP_IN = "/etc/systemd/system/ovs-vswitchd.service.d"


@check(
    id="NET-13",
    objective="The walls of the virtual switch hold while its parts restart",
    severity="high",
    effect=Effect.RESTARTS,
    applies=needs_company,
    breaches=(
        for_a_while(
            "a switch that has just started passes frames on to another guest",
            "dl_dst={victim}",
            _DROP_IN,
            "ovs-vswitchd",
        ),
        shortcut("a forgotten rule lasts until the switch restarts", "dl_dst={victim}"),
        *where(lambda context: not has_pair(context), ALLOW_ALL),
    ),
)
def test_walls_hold_while_the_switch_restarts(fleet: Fleet) -> None:
    leaks = service_restarts(fleet).leaks
    assert not leaks, f"{len(leaks)} kinds of frames leaked: {'; '.join(leaks[:6])}"


def _loose_rule(name: str, match: str, actions: Callable[[BreachContext], str]) -> Breach:
    """Return a breach by one OpenFlow rule for frames of interfaces unknown to OVN."""
    return shell_breach(
        name,
        opens=lambda context: f"{TABLE} add-flow br-int {match},actions={actions(context)}",
        closes=lambda _: f"{TABLE} --strict del-flows br-int {match}",
        shows=lambda _: f"{TABLE} dump-flows br-int table=0 | grep -q '{match.partition(',')[2]} actions='",
    )


@check(
    id="NET-13",
    objective=(
        "A guest that attacks from its first frame gets nothing through: unknown, bound, reset, by a "
        "second interface"
    ),
    severity="high",
    effect=Effect.DISTURBS,
    breaches=(
        _loose_rule("frames of an unknown interface are switched", "table=0,priority=50", lambda _: "NORMAL"),
        _loose_rule(
            "frames of an invented MAC address go to a guest",
            "table=0,priority=200,dl_src=0e:00:00:00:00:00/ff:00:00:00:00:00",
            lambda context: f"output:{context.guests[-1].nics[0].tap}",
        ),
    ),
)
def test_walls_hold_from_the_first_frame(fleet: Fleet) -> None:
    leaks = new_guest(fleet).leaks
    assert not leaks, f"{len(leaks)} kinds of frames leaked: {'; '.join(leaks[:6])}"


@check(
    id="NET-13",
    objective="The walls hold while the whole controller reboots",
    severity="high",
    effect=Effect.REBOOTS,
    applies=needs_company,
    slow="the controller boots for a minute or more",
    breaches=(
        shortcut("a forgotten rule is still there", "dl_dst={victim}"),
        ALLOW_ALL,
    ),
)
def test_walls_hold_without_the_controller(fleet: Fleet) -> None:
    leaks = controller_reboot(fleet).leaks
    assert not leaks, f"{len(leaks)} kinds of frames leaked: {'; '.join(leaks[:6])}"


def _others_are_left(context: BreachContext) -> str | None:
    """Return why no guests are left that could attack while a node is away, or None."""
    if len(context.topology.nodes) < 2:
        return "the fleet has one node, so no guest is left while it boots"
    return (
        None
        if _left(context)
        else (
            "whichever node boots, no two guests are left that no flow joins, so nothing could leak meanwhile"
        )
    )


def _left(context: BreachContext) -> Pair | None:
    """Return two guests that remain while the node is away, or None."""
    away = leaver(context.topology)
    return pair(context.topology.without(away)) if away else None


def _among_left(context: BreachContext) -> Pair:
    return _left(context) or context.pair()


@check(
    id="NET-13",
    objective="The walls hold while a whole node reboots",
    severity="high",
    effect=Effect.REBOOTS,
    applies=_others_are_left,
    slow="the node boots for a minute or more, and its guests after it",
    breaches=(
        shortcut("a rule of the switch is left over", "dl_dst={victim}", among=_left),
        *where(
            lambda context: (found := _left(context)) is not None and found.local,
            mirrored(
                "frames are mirrored past the switch",
                lambda context: _among_left(context).attacker.guest,
                lambda context: _among_left(context).victim.nic.tap,
            ),
        ),
    ),
)
def test_walls_hold_without_a_node(fleet: Fleet) -> None:
    leaks = node_reboot(fleet).leaks
    assert not leaks, f"{len(leaks)} kinds of frames leaked: {'; '.join(leaks[:6])}"


def _again(context: BreachContext) -> tuple[Acl, ...]:
    """Return second rules for the first declared flow, such as leftovers of an earlier change."""
    flow = context.flow()
    nic, other = flow.source.nic, flow.target.nic
    return (
        Acl(
            "from-lport",
            2000,
            f'inport == "{nic.port}" && ip4.dst == {other.address} && {flow.match}',
            "allow-related",
        ),
        Acl(
            "to-lport",
            2000,
            f'outport == "{other.port}" && ip4.src == {nic.address} && {flow.match}',
            "allow-related",
        ),
    )


@check(
    id="NET-13",
    objective="An established connection ends when its rule goes",
    severity="high",
    effect=Effect.DISTURBS,
    applies=needs_flow,
    breaches=(
        acl_breach("a second rule for a flow outlives the first", _again),
        ALLOW_ALL,
    ),
)
def test_connections_end_with_their_rule(fleet: Fleet) -> None:
    found = rule_removal(fleet)
    if not found.observation.windows(EARLY):
        raise InstrumentError(
            "the held connection was not seen", fact=str(found.held)[:200], remedy="repeat the check"
        )
    survived = found.seen(LATE, "packets of a connection whose rule was gone")
    assert not survived, "; ".join(survived)
    assert not found.leaks, f"{len(found.leaks)} kinds of frames leaked: {'; '.join(found.leaks[:6])}"


def _claims(node: MachineView) -> list[tuple[str, str]]:
    """Return name and logical port of each interface of a node's switch that claims one.

    Claims of any form are included.

    Raises:
        InstrumentError: the interfaces cannot be read.
    """
    text = node.read("ovs-vsctl --format=json --columns=name,external_ids list interface")
    try:
        found = [(str(row["name"]), dict(row["external_ids"])) for row in rows(bounded_json.read(text))]
    except (ValueError, KeyError, TypeError) as error:
        raise InstrumentError(
            f"the interfaces of {node.name} cannot be read", fact=repr(error), remedy="repeat the check"
        ) from error
    return [(name, str(ids["iface-id"])) for name, ids in found if "iface-id" in ids]


def _thief(context: BreachContext) -> str:
    """Return the setting that claims a port: of the second guest on the node, else of the first."""
    claimed = context.sharers()[1] if has_sharers(context) else context.guest
    return f"external_ids:iface-id={claimed.nics[0].port}"


def _later(context: BreachContext) -> str:
    return str(uuid5(NAMESPACE_OID, context.case))


def _bound(name: str) -> str:
    return f"{TABLE} dump-flows br-int table=0,in_port={name} | grep -q priority=100"


@check(
    id="NET-13",
    objective="Each logical port is bound to the interface of the guest that owns it, and to no other",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    breaches=(
        *where(
            lambda context: bool(context.guests),
            shell_breach(
                "a second interface takes a guest's port",
                opens=lambda context: (
                    "ovs-vsctl add-port br-int thief -- "
                    f"set interface thief type=internal {_thief(context)}; "
                    f"for round in $(seq 60); do {_bound('thief')} && exit 0; sleep 0.5; done; exit 1"
                ),
                closes=lambda _: "ovs-vsctl --if-exists del-port br-int thief",
                shows=lambda _: _bound("thief"),
            ),
        ),
        *where(
            has_sharers,
            shell_breach(
                "a guest's interface is moved to another guest's port",
                opens=lambda context: (
                    f"ovs-vsctl set interface {context.guest.nics[0].tap} {_thief(context)}"
                ),
                closes=lambda context: (
                    "ovs-vsctl set interface {0.tap} external_ids:iface-id={0.port}".format(
                        context.guest.nics[0]
                    )
                ),
                # 22: length of "external_ids:iface-id="
                shows=lambda context: (
                    f"ovs-vsctl get interface {context.guest.nics[0].tap} external_ids | "
                    f"grep -q {_thief(context)[22:]}"
                ),
            ),
        ),
        shell_breach(
            "an interface waits for a port that is still to come",
            opens=lambda context: (
                "ovs-vsctl add-port br-int early -- set interface early type=internal "
                f"external_ids:iface-id={_later(context)}"
            ),
            closes=lambda _: "ovs-vsctl --if-exists del-port br-int early",
            shows=lambda context: f"ovs-vsctl get interface early external_ids | grep -q {_later(context)}",
        ),
        shell_breach(
            "an interface claims a port whose name is no number",
            opens=lambda _: (
                "ovs-vsctl add-port br-int odd -- set interface odd type=internal "
                "'external_ids:iface-id=\"Any port, really\"'"
            ),
            closes=lambda _: "ovs-vsctl --if-exists del-port br-int odd",
            shows=lambda _: "ovs-vsctl get interface odd external_ids | grep -q 'Any port, really'",
        ),
    ),
)
def test_ports_have_their_own_interfaces(fleet: Fleet, node: MachineView) -> None:
    found = _claims(node)
    owners = {nic.port: guest.label for guest in fleet.topology.guests for nic in guest.nics}
    wanted = {(nic.tap, nic.port) for guest in fleet.topology.guests_on(node.name) for nic in guest.nics}
    missing = wanted - {*found}
    stolen = [
        f"{name} claims the port of {owners.get(port, 'no guest')}"
        for name, port in found
        if (name, port) not in wanted
    ]
    assert not stolen, f"{len(stolen)} interfaces of {node.name}: {'; '.join(stolen[:6])}"
    if missing:
        fact = ", ".join(owners[port] for _, port in missing)
        raise InstrumentError(
            f"{len(missing)} ports of {node.name} have no interface", fact=fact, remedy="run `testbed up`"
        )
