"""Controls that can be judged by looking at a host that others have set up. Pure.

Nothing is known of tenants there: every guest counts as a tenant of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from testbed.hosts import rules
from testbed.hosts.facts import HostFacts
from testbed.hosts.rules import UnseenError
from testbed.report.result import Verdict

# Devices that libvirt gives a worker by itself (libvirt, qemu.conf, cgroup_device_acl), with their numbers
# (Linux, admin-guide/devices.txt). The number of userfaultfd is assigned at boot.
_DEVICES = frozenset(
    {
        "c 1:3 null", "c 1:5 zero", "c 1:7 full", "c 1:8 random", "c 1:9 urandom", "c 5:2 ptmx",
        "c 10:232 kvm", "c 10:228 hpet", "c 10:238 vhost-net",
    }
)  # fmt: skip
_USERFAULT = re.compile(r"c 10:\d+ userfaultfd")
_OTHERS = 0o007  # permissions of other accounts


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict about one control of a host."""

    control: str
    verdict: Verdict
    reason: str = ""


def _accounts(host: HostFacts) -> str:
    return rules.one_account_each(host.workers)


def _labels(host: HostFacts) -> str:
    return rules.confined(host.workers)


def _filters(host: HostFacts) -> str:
    return next(filter(None, map(rules.filtered, host.workers)), "")


def _privileges(host: HostFacts) -> str:
    for worker in host.workers:
        known = {device for device in worker.devices if _USERFAULT.fullmatch(device)}
        if fault := rules.unprivileged(worker, host, _DEVICES | known):
            return fault
    return ""


def _pages(host: HostFacts) -> str:
    if len(host.deduplication) != 3:
        raise UnseenError("the kernel shows no state of page merging")
    runs, shared, _ = host.deduplication
    return f"the kernel merges equal pages: run is {runs}, {shared} are shared" if runs or shared else ""


def _at_rest(host: HostFacts) -> str:
    if host.swap:
        return f"the host swaps: {host.swap[0]}"
    return rules.without_cores(host.workers, host.core_pattern)


def _sockets(host: HostFacts) -> str:
    if not host.sockets:
        raise UnseenError("libvirt has no socket")
    loose = [f"{path} ({mode})" for path, mode, _, _ in host.sockets if int(mode, 8) & _OTHERS]
    return f"every account may connect: {', '.join(loose)}" if loose else ""


# id, rule, and whether it is about guests that run (docs/how-to/audit-hosts.md says what is looked at)
CONTROLS: tuple[tuple[str, Callable[[HostFacts], str], bool], ...] = (
    ("ACC-05", _sockets, False),
    ("CMP-02", _pages, False),
    ("PRC-01", _accounts, True),
    ("PRC-02", _labels, True),
    ("PRC-03", _filters, True),
    ("PRC-04", _privileges, True),
    ("STO-05", _at_rest, False),
)


def judge(host: HostFacts) -> list[Finding]:
    """Return a verdict for each control."""
    return [_judged(control, rule, host, needs=needs) for control, rule, needs in CONTROLS]


def _judged(control: str, rule: Callable[[HostFacts], str], host: HostFacts, *, needs: bool) -> Finding:
    if needs and not host.workers:
        return Finding(control, Verdict.NOT_APPLICABLE, "no guest runs")
    try:
        fault = rule(host)
    except (UnseenError, ValueError) as error:
        return Finding(control, Verdict.INCONCLUSIVE, str(error))
    return Finding(control, Verdict.FAIL if fault else Verdict.PASS, fault)
