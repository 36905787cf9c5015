"""Walls over time: guests attack without a pause while the parts of the virtual switch start anew (NET-13)."""

from __future__ import annotations

from functools import partial

from checks.breaches import TABLE, command, needs_flow, shortcut
from checks.forgeries import Forgery, forgeries
from testbed.verify.declare import check
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.network import Attack, observe
from testbed.verify.observation import Observation, matrix_probes
from testbed.verify.probing import Probe

_CENTRAL = "ovn-ovsdb-server-nb ovn-ovsdb-server-sb ovn-northd"
_DROP_IN = "/etc/systemd/system/ovs-vswitchd.service.d"
_SERVICES = ("ovn-controller", "ovs-vswitchd")
_SECONDS = 240.0  # after which guests give up; must outlast the restarts
_PER_CONTROL = 2  # kinds of false frames of each control that a guest sends in turns


@check(
    id="NET-13",
    objective="The walls of the virtual switch hold while its parts start anew",
    severity="high",
    applies=needs_flow,
    breaches=(
        command(
            "a switch that has just started passes everything",
            opens=lambda _: f"mkdir -p {_DROP_IN} && printf '[Service]\nExecStartPost=/usr/bin/{TABLE} add-flow br-int actions=NORMAL\n' "
            f"> {_DROP_IN}/breach.conf && systemctl daemon-reload",
            closes=lambda _: f"rm -rf {_DROP_IN}; systemctl daemon-reload; {TABLE} --strict del-flows br-int priority=32768",
            shows=lambda _: "systemctl cat ovs-vswitchd | grep -q NORMAL",
        ),
        shortcut("a forgotten rule lasts until the switch starts anew", "dl_dst={victim}"),
    ),
)
def test_walls_hold_while_the_switch_starts_anew(fleet: Fleet) -> None:
    frames = [*((lie.probe, str(lie)) for lie in _selected(forgeries(fleet))), *_crossings(fleet)]
    observation = observe(fleet, (), Attack([probe for probe, _ in frames], _SECONDS, lambda: _restart(fleet)))
    leaks = [text for probe, meaning in frames for text in _leaks(observation, probe, meaning)]
    assert not leaks, f"{len(leaks)} kinds of frames leaked: {'; '.join(leaks[:6])}"


def _selected(lies: list[Forgery]) -> list[Forgery]:
    """Return the first few lies of each sender and control, so that each comes round often."""
    counts: dict[tuple[str, str], int] = {}
    chosen = []
    for lie in lies:
        key = (lie.sender.label, lie.control)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= _PER_CONTROL:
            chosen.append(lie)
    return chosen


def _restart(fleet: Fleet) -> None:
    """Start the controller's part and then the nodes' parts of the switch anew, one after another, as an upgrade does."""
    controller = fleet.machines[fleet.testbed.controller.name]
    controller.read(f"systemctl stop {_CENTRAL}; systemctl start {_CENTRAL} && systemctl is-active {_CENTRAL}")
    fleet.lab.central.northbound.sync()
    for service in _SERVICES:
        restart = f"systemctl restart {service} && systemctl is-active {service}"
        fleet.everywhere(partial(Machine.read, command=restart))
        fleet.lab.central.northbound.sync()


def _crossings(fleet: Fleet) -> list[tuple[Probe, str]]:
    """Return honest segments from every guest to every other tenant's guests."""
    cells = [cell for cell in fleet.matrix.denied() if cell.protocol == "tcp" and cell.source.tenant != cell.target.tenant]
    return list(zip(matrix_probes(cells), map(str, cells), strict=True))


def _leaks(observation: Observation, probe: Probe, meaning: str) -> list[str]:
    return [
        f"{meaning} at {guest}: {times} frames in {seconds * 1000:.0f} ms" for guest, seconds, times in observation.windows(probe.mark)
    ]
