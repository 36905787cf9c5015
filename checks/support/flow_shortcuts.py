"""Breaches by OpenFlow rules: some frames of a guest go straight to another guest, on its node or through a
tunnel.

Both are chosen from the whole fleet (`testbed.model.subjects.pair`): of different tenants if there are two,
on one node if they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from checks.support.breaches import TABLE, has_pair
from testbed.model import subjects
from testbed.model.subjects import Pair
from testbed.model.topology import Plane
from testbed.verify.breach_context import Host, Stage
from testbed.verify.check import Breach

_KEY = "0xb4eac4"  # of frames on their way through a tunnel; no network of a topology has a key as high
_PRIORITY = 200  # above every rule of OVN's in this table


@dataclass(frozen=True, slots=True)
class Rule:
    """One OpenFlow rule of a node's first table, as commands; port names are looked up on the node.

    Args:
        place: name of the node.

    """

    place: str
    match: str
    actions: str

    @property
    def add(self) -> str:
        """The command that adds it."""
        return f'{TABLE} add-flow br-int "table=0,{self.match},priority={_PRIORITY},actions={self.actions}"'

    @property
    def delete(self) -> str:
        """The command that takes it away."""
        return f'{TABLE} --strict del-flows br-int "table=0,{self.match},priority={_PRIORITY}"'

    @property
    def shown(self) -> str:
        """A command that succeeds while it is there."""
        return f'{TABLE} dump-flows br-int "table=0,{self.match}" | grep -q priority={_PRIORITY}'


def rules(stage: Stage, pair: Pair, match: str, actions: str = "") -> list[Rule]:
    """Return the rules by which some frames of an attacker come to a victim.

    Args:
        match: OpenFlow match of the frames, besides their port; ``{victim}`` is the MAC address of the
            victim.
        actions: what is done to them first.

    """
    attacker, victim = pair.attacker, pair.victim
    wanted = f"in_port={attacker.nic.tap},{match.format(victim=victim.nic.mac)}"
    start, end = attacker.guest.node, victim.guest.node
    if pair.local:
        return [Rule(start, wanted, f"{actions}output:{victim.nic.tap}")]
    return [
        Rule(end, f"in_port={_tunnel(stage, start)},tun_id={_KEY}", f"output:{victim.nic.tap}"),
        Rule(start, wanted, f"{actions}set_field:{_KEY}->tun_id,output:{_tunnel(stage, end)}"),
    ]


def _tunnel(stage: Stage, peer: str) -> str:
    """Return what names a node's tunnel to another one, in a shell."""
    address = stage.testbed.machine(peer).address(Plane.FABRIC)
    return f"$(ovs-vsctl --bare --columns=name find interface type=geneve options:remote_ip={address})"


def _anywhere(stage: Stage) -> Pair | None:
    return subjects.pair(stage.testbed)


def shortcut(
    name: str, match: str, actions: str = "", among: Callable[[Stage], Pair | None] = _anywhere
) -> Breach:
    """Return a breach by which some frames of a guest go straight to another one; see `rules`.

    Args:
        among: the two guests; the breach applies where there are such.

    """

    def of(stage: Stage) -> list[Rule]:
        return rules(stage, among(stage) or stage.pair(), match, actions)

    def on(stage: Stage, rule: Rule) -> Host:
        return stage.lab.host(rule.place)

    def opens(stage: Stage) -> None:
        for rule in of(stage):
            on(stage, rule).must(rule.add)

    def closes(stage: Stage) -> None:
        for rule in of(stage):
            on(stage, rule).must(rule.delete)

    def shows(stage: Stage) -> bool:
        return all(on(stage, rule).sudo(rule.shown).status == 0 for rule in of(stage))

    return Breach(name, opens, closes, shows, applies=lambda stage: among(stage) is not None)


def for_a_while(name: str, match: str, folder: str, service: str) -> Breach:
    """Return a breach by which a node's switch has such rules for some seconds after each start, although OVN
    takes them away.

    Args:
        folder: of the settings of the service that are added to its own.

    """

    def script(rule: Rule) -> bytes:
        return f"for round in 1 2 3 4 5 6 7 8; do {rule.add}; sleep 0.5; done\n".encode()

    def opens(stage: Stage) -> None:
        setting = f"[Service]\\nExecStartPost=/bin/sh {folder}/breach.sh\\n"
        for rule in rules(stage, stage.pair(), match):
            write = (
                f"mkdir -p {folder} && cat > {folder}/breach.sh && printf '{setting}' > {folder}/breach.conf"
            )
            stage.lab.host(rule.place).must(f"{write} && systemctl daemon-reload", stdin=script(rule))

    def closes(stage: Stage) -> None:
        for rule in rules(stage, stage.pair(), match):
            stage.lab.host(rule.place).must(f"rm -rf {folder}; systemctl daemon-reload; {rule.delete}")

    def shows(stage: Stage) -> bool:
        show = f"systemctl cat {service} | grep -q breach.sh"
        return all(
            stage.lab.host(rule.place).sudo(show).status == 0 for rule in rules(stage, stage.pair(), match)
        )

    return Breach(name, opens, closes, shows, applies=has_pair)
