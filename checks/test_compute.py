"""Compute walls: one confined identity per worker, no merged pages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from checks.support.breaches import load, needs_guest, profile, rules, shell_breach
from checks.support.lodger import lodger, start_lodger, stop_lodger
from testbed.errors import InstrumentError
from testbed.model.subjects import spare_worker
from testbed.model.topology import POOLS
from testbed.verify.attackers.worker import Attempt, Job, all_succeeded, in_words, processes
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses import confinement

_SHOWN = 6
_KSM = "/sys/kernel/mm/ksm"
# Counts the memory areas of a process, and those with the flag "mg", which the kernel may merge (proc(5)).
_COUNT_AREAS = (
    'awk \'/^VmFlags:/ {{ areas++; for (i = 2; i <= NF; i++) mergeable += $i == "mg" }} END {{ print '
    "areas + 0, mergeable + 0 }}' "
    "/proc/{}/smaps"
)
_QEMU, _REQUIRED = "/etc/libvirt/qemu.conf", "security_require_confined"
_ENFORCED = re.compile(r"libvirt-[0-9a-f-]{36} \(enforce\)")


def _owners(context: BreachContext, form: str) -> list[str]:
    """Return account or group of two workers: the first guest's, and the lodger's."""
    domains = (context.guest.domain, lodger(context).domain)
    files = " ".join(f"/run/libvirt/qemu/{domain}.pid" for domain in domains)
    return context.host.must(
        f"for file in {files}; do [ -e $file ] && stat -c {form} /proc/$(cat $file); done; true"
    ).split()


@dataclass(frozen=True, slots=True)
class _Identity:
    """Accounts and groups of a process.

    They are real, effective, saved and of its file system; then its further groups.
    """

    accounts: frozenset[int]
    groups: frozenset[int]
    others: frozenset[int]


def _identity(node: MachineView, worker: int) -> _Identity:
    text = node.read(f"cat /proc/{worker}/status")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        return _Identity(*(frozenset(map(int, fields[name].split())) for name in ("Uid", "Gid", "Groups")))
    except (KeyError, ValueError) as error:
        raise InstrumentError(
            f"process {worker} of {node.name} cannot be read", fact=repr(error), remedy="repeat the check"
        ) from error


def _mixed(identities: Mapping[str, _Identity], wanted: Mapping[str, int], kvm: int) -> list[str]:
    """Return the workers that do not run under one account and one group of their own.

    Args:
        wanted: the account that the topology gives a guest, by its domain; its group has the same number.
        kvm: the group that opens /dev/kvm, the only shared one. A worker without it has fewer permissions,
            and opens no wall.
    """
    found = []
    for domain, own in identities.items():
        if (
            own.accounts | own.groups != {wanted.get(domain, min(own.accounts))}
            or 0 in own.accounts | own.groups
        ):
            found.append(
                f"{domain} runs as {sorted(own.accounts)}:{sorted(own.groups)} and not under an "
                "account and a group of one number"
            )
        found += [
            f"{domain} and {other} share account {sorted(own.accounts)}"
            for other, their in identities.items()
            if domain < other and own.accounts & their.accounts
        ]
        if own.others - own.groups - {kvm}:
            found.append(f"{domain} is in the groups {sorted(own.others - own.groups - {kvm})} as well")
    return found


@check(
    id="PRC-01",
    objective="Every worker has an account of its own and cannot touch another worker",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        Breach(
            "two workers share one account",
            open=start_lodger,
            close=stop_lodger,
            in_force=lambda context: _owners(context, "%u") == [str(lodger(context).uid)] * 2,
        ),
        Breach(
            "a worker is in the group of another worker",
            open=lambda context: start_lodger(
                context, account=spare_worker(context.topology, context.node.name)[0]
            ),
            close=stop_lodger,
            in_force=lambda context: _owners(context, "%g") == [str(lodger(context).uid)] * 2,
        ),
    ),
)
def test_workers_have_accounts_of_their_own(fleet: Fleet, node: MachineView) -> None:
    guests = fleet.topology.guests_on(node.name)
    workers = processes(node, guests)
    identities = {domain: _identity(node, worker) for domain, worker in workers.items()}
    mixed = _mixed(
        identities,
        {guest.domain: guest.uid for guest in guests},
        int(node.read("getent group kvm | cut -d: -f3")),
    )
    assert not mixed, f"{len(mixed)} workers have no account of their own: {'; '.join(mixed[:6])}"
    jobs = []
    for attacker in guests:
        others = [str(worker) for domain, worker in workers.items() if domain != attacker.domain]
        attempts = [Attempt("signal", other) for other in others]
        attempts += [
            Attempt("read", f"/proc/{other}/{file}")
            for other in others
            for file in ("environ", "maps", "mem")
        ]
        attempts += [Attempt("write", f"/proc/{other}/mem") for other in others]
        jobs.append(Job(attacker, tuple(attempts)))
    reached = in_words(jobs, all_succeeded(node, jobs))
    assert not reached, f"{len(reached)} workers reached others: {'; '.join(reached[:_SHOWN])}"


@check(
    id="PRC-02",
    objective="Every worker is confined by an enforced AppArmor profile of its own",
    severity="critical",
    effect=Effect.DISTURBS,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "a worker's profile only complains",
            opens=lambda context: f"apparmor_parser -r -C {profile(context.guests[0])}",
            closes=lambda context: load(context.guests[0]),
            shows=lambda context: (
                f"grep -q '^libvirt-{context.guests[0].uuid} (complain)' "
                "/sys/kernel/security/apparmor/profiles"
            ),
        ),
        shell_breach(
            "a worker's profile allows everything below /etc",
            opens=lambda context: (
                f"echo '  /etc/** rw,' >> {rules(context.guests[0])}; {load(context.guests[0])}"
            ),
            closes=lambda context: (
                f"sed -i '\\#^  /etc/\\*\\* rw,#d' {rules(context.guests[0])}; {load(context.guests[0])}"
            ),
            shows=lambda context: f"grep -qF '/etc/** rw,' {rules(context.guests[0])}",
        ),
        shell_breach(
            "a worker's profile lets it start a shell",
            opens=lambda context: (
                f"echo '  /{{usr/,}}bin/dash mrix,' >> {rules(context.guests[0])}; {load(context.guests[0])}"
            ),
            closes=lambda context: (
                f"sed -i '\\#bin/dash mrix,#d' {rules(context.guests[0])}; {load(context.guests[0])}"
            ),
            shows=lambda context: f"grep -qF 'bin/dash mrix,' {rules(context.guests[0])}",
        ),
        shell_breach(
            "libvirt will not ask for a profile after a restart; a comment says that it will",
            opens=lambda _: f"sed -i 's/^{_REQUIRED} = 1$/#&\\n{_REQUIRED} = 0/' {_QEMU}",
            closes=lambda _: f"sed -i -e '/^{_REQUIRED} = 0$/d' -e 's/^#\\({_REQUIRED} = 1\\)$/\\1/' {_QEMU}",
            shows=lambda _: f"grep -qx '{_REQUIRED} = 0' {_QEMU} && grep -q '{_REQUIRED} = 1' {_QEMU}",
        ),
    ),
)
def test_workers_are_confined(fleet: Fleet, node: MachineView) -> None:
    forbidden = (
        *(Attempt("read", f"/etc/{name}") for name in ("shadow", "libvirt/qemu.conf", "sudoers")),
        *(Attempt("write", f"/etc/{name}") for name in ("hostname", "passwd")),
        Attempt("list", POOLS),
        Attempt("read", "/proc/1/cmdline"),
        *(Attempt("execute", f"/usr/bin/{name}") for name in ("dash", "bash", "cat", "dd")),
    )
    guests = fleet.topology.guests_on(node.name)
    jobs = [Job(guest, forbidden, uid=0) for guest in guests]
    allowed = in_words(jobs, all_succeeded(node, jobs))
    assert not allowed, f"{len(allowed)} profiles allow too much: {'; '.join(allowed[:_SHOWN])}"
    labels = {
        domain: node.read(f"cat /proc/{worker}/attr/current")
        for domain, worker in processes(node, guests).items()
    }
    for guest in guests:
        found = labels.get(guest.domain, "")
        assert found == f"libvirt-{guest.uuid} (enforce)", f"the worker of {guest.label} runs under '{found}'"
    loose = [
        domain
        for domain, label in labels.items()
        if not _ENFORCED.fullmatch(label) or [*labels.values()].count(label) > 1
    ]
    texts = ", ".join(f"{domain} runs under '{labels[domain]}'" for domain in sorted(loose))
    assert not loose, f"workers without an enforced profile of their own: {texts}"
    unconfigured = confinement.unconfigured(node)
    assert not unconfigured, f"libvirt will start guests without a profile: {'; '.join(unconfigured)}"
    unconfined = confinement.starts_unconfined(fleet, fleet.topology.guests_on(node.name)[0])
    assert not unconfined, f"libvirt on {node.name} starts a guest without a profile"


@check(
    id="CMP-02",
    objective="No memory page is shared between guests",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    breaches=(
        shell_breach(
            "the kernel merges equal pages",
            opens=lambda _: f"echo 1 > {_KSM}/run",
            closes=lambda _: f"echo 2 > {_KSM}/run; echo 0 > {_KSM}/run",
            shows=lambda _: f"[ $(cat {_KSM}/run) = 1 ]",
        ),
    ),
)
def test_no_page_is_shared(fleet: Fleet, node: MachineView) -> None:
    state = node.read(f"cat {_KSM}/run {_KSM}/pages_shared {_KSM}/pages_sharing").split()
    if len(state) != 3:
        raise InstrumentError(
            "the kernel does not tell about page merging",
            fact=repr(state),
            remedy="look at the node's kernel",
        )
    assert state[0] == "0", f"{_KSM}/run is {state[0]}"
    assert state[1:] == ["0", "0"], f"{state[1]} pages are shared {state[2]} times"
    for domain, worker in processes(node, fleet.topology.guests_on(node.name)).items():
        areas, mergeable = map(int, node.read(_COUNT_AREAS.format(worker)).split())
        if not areas:
            raise InstrumentError(
                f"the memory of {domain}'s worker cannot be read",
                fact="no area is told",
                remedy="repeat the check",
            )
        assert not mergeable, f"{mergeable} of {areas} memory areas of {domain}'s worker may be merged"
