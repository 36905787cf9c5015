"""Algorithms that protect the logins of administrators: none that is weak may be agreed on."""

from __future__ import annotations

import time

from checks.support.breaches import shell_breach
from checks.support.judging import judging
from testbed.model.topology import Plane
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses import ssh_algorithms

_SHOWN = 8
_CONFIGURATION, _COPY = "/etc/ssh/sshd_config", "/run/breach-sshd_config"
# Sessions go on: their processes are not the server's main one. The manager counts starts, and refuses some.
_RESTART = "{ systemctl reset-failed ssh; systemctl restart ssh; }"


def _offering(name: str, keyword: str, algorithm: str) -> Breach:
    """Return the breach that sshd offers one algorithm more.

    Args:
        keyword: of sshd_config(5).
    """
    return shell_breach(
        name,
        opens=lambda _: (
            f"sed 's/^{keyword} .*/&,{algorithm}/' {_CONFIGURATION} > {_COPY} && "
            f"mount --bind {_COPY} {_CONFIGURATION} && {_RESTART}"
        ),
        closes=lambda _: (
            f"while umount -q {_CONFIGURATION}; do :; done; rm -f {_COPY}; {_RESTART}; "
            f"! sshd -T | grep -q '^{keyword.lower()} .*{algorithm}'"
        ),
        shows=lambda _: f"sshd -T | grep -q '^{keyword.lower()} .*{algorithm}'",
    )


@check(
    id="ACC-03",
    objective="No login to a machine can be protected by a weak algorithm",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    breaches=(
        _offering("sshd offers a key exchange with SHA-1", "KexAlgorithms", "diffie-hellman-group14-sha1"),
        _offering("sshd offers a cipher of 64-bit blocks", "Ciphers", "3des-cbc"),
        _offering("sshd offers a MAC with SHA-1", "MACs", "hmac-sha1"),
    ),
)
def test_no_weak_algorithm_is_offered(fleet: Fleet, machine: MachineView) -> None:
    address = str(fleet.topology.machine(machine.name).address(Plane.MANAGEMENT))
    started = time.time()
    with judging(f"ssh of {machine.name}"):
        machine.read("true")  # a login works
        offer = ssh_algorithms.offered(address)
        fleet.evidence.record(machine.name, "ssh", "what the server offers", str(offer), started)
        found = ssh_algorithms.weak(offer)
    assert not found, f"{len(found)} weak algorithms are offered: {', '.join(found[:_SHOWN])}"
