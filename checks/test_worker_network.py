"""Networks of a node, as a worker that was taken over sees them: it must reach none."""

from __future__ import annotations

from checks.support.breaches import load, needs_guest, rules, shell_breach
from checks.support.judging import judging
from checks.support.lodger import lodger, start_lodger, stop_lodger
from testbed.verify.attackers import worker_network
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView

_CHAIN = "inet testbed output"
_RULE = "meta skuid 64100-64163 counter"  # playbooks/roles/firewall/files/nftables.conf
_NUMBERED = "nft -a list chain inet testbed output | sed -n 's/.*{} .*# handle //p'"
_NETWORK = "  network inet stream,"
_ACCOUNT = "libvirt-qemu"  # libvirt's own choice; the firewall's rule names the accounts of our workers
_SHOWN = 6


def _is_strange(context: BreachContext) -> bool:
    """Return whether the lodger's worker runs under libvirt's own account."""
    process = f"/proc/$(cat /run/libvirt/qemu/{lodger(context).domain}.pid)"
    return context.host.sudo(f"[ $(stat -c %U {process}) = {_ACCOUNT} ]").status == 0


def _exception(context: BreachContext) -> str:
    return f"meta skuid {context.guest.uid} accept"


@check(
    id="PRC-05",
    objective="A worker that was taken over opens no socket of a network, and its account sends nothing",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "the firewall lets workers' accounts send",
            opens=lambda _: (
                f"for rule in $({_NUMBERED.format('skuid 64100-64163')}); do "
                f"nft delete rule {_CHAIN} handle $rule; done"
            ),
            closes=lambda _: (
                f"nft list chain {_CHAIN} | grep -q 'skuid 64100-64163' || "
                f"nft add rule {_CHAIN} {_RULE} reject"
            ),
            shows=lambda _: f"! nft list chain {_CHAIN} | grep -q 'skuid 64100-64163'",
        ),
        shell_breach(
            "the firewall makes an exception for one worker",
            opens=lambda context: f"nft insert rule {_CHAIN} {_exception(context)}",
            closes=lambda context: (
                f"for rule in $({_NUMBERED.format(_exception(context))}); do "
                f"nft delete rule {_CHAIN} handle $rule; done"
            ),
            shows=lambda context: f"nft list chain {_CHAIN} | grep -q '{_exception(context)}'",
        ),
        Breach(
            "a worker runs under an account that the firewall does not know",
            open=lambda context: start_lodger(context, account=_ACCOUNT, group="kvm"),
            close=stop_lodger,
            in_force=_is_strange,
        ),
        shell_breach(
            "a worker's profile lets it open connections",
            opens=lambda context: (
                f"echo '{_NETWORK}' >> {rules(context.guests[0])}; {load(context.guests[0])}"
            ),
            closes=lambda context: (
                f"sed -i '/^{_NETWORK}$/d' {rules(context.guests[0])}; {load(context.guests[0])}"
            ),
            shows=lambda context: f"grep -qxF '{_NETWORK}' {rules(context.guests[0])}",
        ),
    ),
)
def test_workers_have_no_network(fleet: Fleet, node: MachineView) -> None:
    with judging(f"the networks of workers on {node.name}"):
        reached = worker_network.reached(fleet, node)
    assert not reached, f"{len(reached)} attempts succeeded: {'; '.join(reached[:_SHOWN])}"
