"""Breaches by OpenFlow rules that send frames of a guest directly to another guest.

The path is on one node or through a tunnel. Both guests are chosen from the whole fleet
(`testbed.model.subjects.pair`): of different tenants if there are two, on one node if there are such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from checks.support.breaches import TABLE, has_pair
from testbed.model import subjects
from testbed.model.subjects import Pair
from testbed.model.topology import Plane
from testbed.verify.breach_context import BreachContext, Host
from testbed.verify.check import Breach

_KEY = "0xb4eac4"  # of frames on their way through a tunnel; no network of a topology has a key as high
_PRIORITY = 200  # above every rule of OVN's in this table


@dataclass(frozen=True, slots=True)
class ShortcutRule:
    """One OpenFlow rule of a node's first table, as commands; the node resolves port names.

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
        """The command that removes it."""
        return f'{TABLE} --strict del-flows br-int "table=0,{self.match},priority={_PRIORITY}"'

    @property
    def shown(self) -> str:
        """A command that succeeds while the rule exists."""
        return f'{TABLE} dump-flows br-int "table=0,{self.match}" | grep -q priority={_PRIORITY}'


def rules(context: BreachContext, pair: Pair, match: str, actions: str = "") -> list[ShortcutRule]:
    """Return the rules that send some frames of an attacker to a victim.

    Args:
        match: OpenFlow match of the frames, besides their port; ``{victim}`` is the MAC address of the
            victim.
        actions: actions that precede the output.
    """
    attacker, victim = pair.attacker, pair.victim
    wanted = f"in_port={attacker.nic.tap},{match.format(victim=victim.nic.mac)}"
    start, end = attacker.guest.node, victim.guest.node
    if pair.local:
        return [ShortcutRule(start, wanted, f"{actions}output:{victim.nic.tap}")]
    return [
        ShortcutRule(end, f"in_port={_tunnel(context, start)},tun_id={_KEY}", f"output:{victim.nic.tap}"),
        ShortcutRule(start, wanted, f"{actions}set_field:{_KEY}->tun_id,output:{_tunnel(context, end)}"),
    ]


def _tunnel(context: BreachContext, peer: str) -> str:
    """Return a shell expression for the name of a node's tunnel interface to another node."""
    address = context.topology.machine(peer).address(Plane.FABRIC)
    return f"$(ovs-vsctl --bare --columns=name find interface type=geneve options:remote_ip={address})"


def _anywhere(context: BreachContext) -> Pair | None:
    return subjects.pair(context.topology)


def shortcut(
    name: str, match: str, actions: str = "", among: Callable[[BreachContext], Pair | None] = _anywhere
) -> Breach:
    """Return a breach that sends some frames of a guest directly to another one; see `rules`.

    Args:
        among: returns the two guests; the breach applies where there are such.
    """

    def of(context: BreachContext) -> list[ShortcutRule]:
        return rules(context, among(context) or context.pair(), match, actions)

    def on(context: BreachContext, rule: ShortcutRule) -> Host:
        return context.lab.host(rule.place)

    def opens(context: BreachContext) -> None:
        for rule in of(context):
            on(context, rule).must(rule.add)

    def closes(context: BreachContext) -> None:
        for rule in of(context):
            on(context, rule).must(rule.delete)

    def shows(context: BreachContext) -> bool:
        return all(on(context, rule).sudo(rule.shown).status == 0 for rule in of(context))

    return Breach(name, opens, closes, shows, applies=lambda context: among(context) is not None)


def for_a_while(name: str, match: str, folder: str, service: str) -> Breach:
    """Return a breach that adds such rules repeatedly for 4 seconds after a service's start.

    It repeats them since OVN removes foreign rules.

    Args:
        folder: systemd's drop-in folder of the service.
    """

    def script(rule: ShortcutRule) -> bytes:
        return f"for round in 1 2 3 4 5 6 7 8; do {rule.add}; sleep 0.5; done\n".encode()

    def opens(context: BreachContext) -> None:
        setting = f"[Service]\\nExecStartPost=/bin/sh {folder}/breach.sh\\n"
        for rule in rules(context, context.pair(), match):
            write = (
                f"mkdir -p {folder} && cat > {folder}/breach.sh && printf '{setting}' > {folder}/breach.conf"
            )
            context.lab.host(rule.place).must(f"{write} && systemctl daemon-reload", stdin=script(rule))

    def closes(context: BreachContext) -> None:
        for rule in rules(context, context.pair(), match):
            context.lab.host(rule.place).must(f"rm -rf {folder}; systemctl daemon-reload; {rule.delete}")

    def shows(context: BreachContext) -> bool:
        show = f"systemctl cat {service} | grep -q breach.sh"
        return all(
            context.lab.host(rule.place).sudo(show).status == 0
            for rule in rules(context, context.pair(), match)
        )

    return Breach(name, opens, closes, shows, applies=has_pair)
