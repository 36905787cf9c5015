"""Flows of the nodes' switches, compared with those that a second ovn-controller computes."""

from __future__ import annotations

from checks.support.breaches import TABLE, shell_breach
from checks.support.judging import judging
from testbed.verify.attackers import programs
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses import computed_flows

_SHOWN = 4
_SECONDS = 600.0  # that two rounds may take on a busy machine
_SAVED = "/run/breach.flow"
_DUMP = f"{TABLE} --no-names --no-stats dump-flows br-int"
# A flow that no packet of a lab meets (RFC 5737), with the cookie of another flow.
_INERT = "table=27,priority=21089,ip,nw_src=198.51.100.137"
# The last flow that drops and has a match, and its match alone.
_DROPS = f"{_DUMP} | grep 'table=.*,.*=.* actions=drop$' | tail -n 1"
_PORTS = "ovs-ofctl show br-int | sed -n 's/^ \\([0-9]*\\)(.*/\\1/p'"
_MATCH = "sed -e 's/^ *cookie=[^,]*, *//' -e 's/ actions=.*//'"


@check(
    id="NET-01",
    objective="The switch of a node has the flows that OVN's southbound database asks for, and no others",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    breaches=(
        shell_breach(
            "a flow that no packet meets yet, under the cookie of another",
            opens=lambda _: (
                f"cookie=$({_DUMP} | sed -n 's/.*cookie=\\([^,]*\\),.* actions=drop$/\\1/p' | head -n 1); "
                f"{TABLE} add-flow br-int cookie=$cookie,{_INERT},actions=drop"
            ),
            closes=lambda _: f"{TABLE} --strict del-flows br-int {_INERT}",
            shows=lambda _: (
                f"{TABLE} dump-flows br-int {_INERT.replace('priority=21089,', '')} | grep -q 21089"
            ),
        ),
        shell_breach(
            "a flow that drops is gone",
            opens=lambda _: (
                f"{_DROPS} > {_SAVED} && "
                f"{TABLE} --strict del-flows br-int \"$({_MATCH} {_SAVED} | tr -d ' ')\""
            ),
            closes=lambda _: f"[ ! -s {_SAVED} ] || {TABLE} add-flows br-int {_SAVED}; rm -f {_SAVED}",
            shows=lambda _: f'[ -s {_SAVED} ] && ! {_DUMP} | grep -qxF "$(cat {_SAVED})"',
        ),
        shell_breach(
            "the switch drops fragments, of which no flow says anything",
            opens=lambda _: "ovs-ofctl set-frags br-int drop",
            closes=lambda _: "ovs-ofctl set-frags br-int normal",
            shows=lambda _: "ovs-ofctl get-frags br-int | grep -q drop",
        ),
        shell_breach(
            "a port of the switch forwards no frames, of which no flow says anything",
            opens=lambda _: f"{_PORTS} | head -n 1 | xargs -I @ ovs-ofctl mod-port br-int @ no-forward",
            closes=lambda _: f"{_PORTS} | head -n 1 | xargs -I @ ovs-ofctl mod-port br-int @ forward",
            shows=lambda _: "ovs-ofctl show br-int | grep -q NO_FWD",
        ),
    ),
)
def test_flows_follow_from_the_southbound_database(fleet: Fleet, node: MachineView) -> None:
    with judging(f"the flows of {node.name}"):
        request = computed_flows.request(fleet.topology)
        answer = programs.collect(node, "computed", request, timeout=_SECONDS, package="flows")
        found = computed_flows.judged(answer)
    told = [
        *(f"nothing asks for {flow}" for flow in found.more[:_SHOWN]),
        *(f"missing is {flow}" for flow in found.missing[:_SHOWN]),
    ]
    assert not told, "\n".join((f"{found.differing} flows are not as they must be:", *told))
