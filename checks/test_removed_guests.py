"""What a guest that was removed from the topology leaves on its node and in OVN: nothing."""

from __future__ import annotations

import time

from checks.support.breaches import controller, needs_room, unit_breach
from checks.support.judging import judging
from testbed.hosts import remnants
from testbed.verify.attackers.departing_guest import NAME, Departing
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView

_SETTLED, _PAUSE = 30.0, 2.0  # seconds that OVN may take to follow its database, and between two looks
_SHOWN = 6
_KEPT = "/var/lib/breach-kept"
# Waits for the guest's domain $d, with its process $p, and for its end.
_ON_NODE = f"""
until f=$(ls /run/libvirt/qemu/*.{NAME}.*.xml 2>/dev/null); do sleep 0.3; done
d=$(basename "$f" .xml)
until p=$(cat "/run/libvirt/qemu/$d.pid" 2>/dev/null); do sleep 0.1; done
{{present}}
while [ -e "$f" ]; do sleep 0.2; done
{{gone}}
exec sleep 900
"""
_IN_OVN = f"""
until mac=$(ovn-nbctl --bare --columns=addresses,external_ids list logical_switch_port \
    | grep -B1 -F {NAME}. | grep -oE '^0e:[0-9a-f:]+'); do sleep 0.5; done
ovn-nbctl create address_set name=kept "addresses=\\"$mac\\""
exec sleep 900
"""


def _keeping(name: str, present: str, gone: str = ":", undone: str = ":") -> Breach:
    """Return a breach: a program of the node keeps something of a guest beyond its removal.

    Args:
        present: what it does while the guest is there.
        gone: what it does after that.
        undone: takes away what it has made.
    """
    script = _ON_NODE.format(present=present, gone=gone)
    return unit_breach(name, ("/bin/sh", "-c", script), f"rm -rf {_KEPT}*; {undone}")


@check(
    id="RES-02",
    objective="Nothing of a removed guest stays on its node or in OVN, and a new guest inherits nothing",
    severity="medium",
    effect=Effect.DISTURBS,
    local=True,
    applies=needs_room,
    breaches=(
        _keeping(
            "the console of a removed guest is kept",
            f'ln "/var/log/libvirt/qemu/$d.console.log" "{_KEPT}.$d"',
        ),
        _keeping(
            "a process of a removed guest's account stays",
            'setpriv --reuid="$(stat -c %u "/proc/$p")" --clear-groups sleep 900 &',
        ),
        _keeping(
            "the profile of a removed guest stays loaded",
            f'sed "/files>/d" "$(grep -l "profile $(cat "/proc/$p/attr/current" | cut -d" " -f1)" '
            f'/etc/apparmor.d/libvirt/libvirt-* | head -n 1)" > {_KEPT}',
            f"sleep 3; apparmor_parser -r {_KEPT}; mv {_KEPT} /usr/local/kept-profile",
            "[ ! -e /usr/local/kept-profile ] || apparmor_parser -R /usr/local/kept-profile; "
            "rm -f /usr/local/kept-profile",
        ),
        _keeping(
            "an interface of a removed guest stays in the switch",
            'u=$(virsh -q domuuid "$d")',
            'ovs-vsctl add-port br-int tapkept -- set interface tapkept type=internal "external_ids:kept=$u"',
            "ovs-vsctl --if-exists del-port br-int tapkept",
        ),
        unit_breach(
            "an address of a removed guest stays in OVN",
            ("/bin/sh", "-c", _IN_OVN),
            "ovn-nbctl --if-exists destroy address_set kept",
            where=controller,
        ),
    ),
)
def test_nothing_of_a_removed_guest_stays(fleet: Fleet, first_host: MachineView) -> None:
    departing = Departing(fleet, first_host.name)
    node, center = departing.node, departing.controller
    with judging(f"the remnants of {departing.guest.label}"):
        inherited = remnants.parsed(departing.look(node))
        assert not inherited, f"before it came: {_told(remnants.in_words(node.name, inherited))}"
        with fleet.leavings.made(f"the guest {departing.guest.domain} on {node.name}", departing.leave):
            departing.arrive()
            remnants.require_seen(remnants.parsed(departing.look(node)), remnants.ON_A_NODE)
            remnants.require_seen(remnants.parsed(departing.look(center)), remnants.ON_THE_CONTROLLER)
        end = time.monotonic() + _SETTLED
        while True:
            left = [
                text
                for machine in (node, center)
                for text in remnants.in_words(machine.name, remnants.parsed(departing.look(machine)))
            ]
            if not left or time.monotonic() > end:
                break
            time.sleep(_PAUSE)
    assert not left, f"{len(left)} things stay: {_told(left)}"


def _told(texts: list[str]) -> str:
    return "; ".join(texts[:_SHOWN])
