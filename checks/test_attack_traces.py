"""What an attack from a guest leaves in the root partition: nothing."""

from __future__ import annotations

from pathlib import Path

from checks.support.breaches import needs_guest, unit_breach
from checks.support.judging import judging
from testbed import payload
from testbed.errors import InstrumentError
from testbed.hosts import traces
from testbed.model.topology import IMAGES, POOLS
from testbed.verify.attackers.device_attack import attack
from testbed.verify.attackers.ephemeral_guest import TAP, Throwaway
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView

_PROGRAM = Path(payload.__file__).parent / "node_traces.py"
_SKIPPED = (IMAGES, POOLS, "/dev/pts", "/dev/shm")  # noqa: S108 - not written to
_FILE = "/run/breach.trace"
# Waits for the first frame of the attacker's interface; packet(7), all protocols.
_REACTION = f"""
import socket, subprocess, time
heard = socket.socket(17, 3, socket.htons(3))
while heard.recvfrom(9)[1][0] != "{TAP}":
    pass
subprocess.Popen(["/bin/sh", "-c", {{command!r}}])
time.sleep(900)
"""
_SHOWN = 6


def _reacting(name: str, command: str) -> Breach:
    """Return a breach: a program of the node acts on frames of a guest.

    Args:
        command: what it does, once.
    """
    program = _REACTION.format(command=command)
    return unit_breach(name, ("/usr/bin/python3", "-c", program), f"rm -f {_FILE}")


@check(
    id="BND-01",
    objective="An attack from a guest on its devices leaves no trace on its node, and harms no other guest",
    severity="critical",
    effect=Effect.DISTURBS,
    local=True,
    applies=needs_guest,
    breaches=(
        _reacting("a program of the node writes a file when a guest sends", f"echo x > {_FILE}"),
        _reacting("a program of the node starts another one when a guest sends", "exec sleep 900"),
        _reacting("a service of the node restarts when a guest sends", "systemctl restart systemd-udevd"),
        _reacting("the kernel of the node warns when a guest sends", "echo '<4>breach' > /dev/kmsg"),
    ),
)
def test_an_attack_leaves_no_trace(fleet: Fleet, last_host: MachineView) -> None:
    node = last_host
    guests = fleet.topology.guests_on(node.name)
    program = _PROGRAM.read_text()

    def look(since: float) -> traces.Traces:
        with judging(f"the root partition of {node.name}"):
            request = {"since": since, "skipped": _SKIPPED}
            return traces.parsed(node.python(program, request, function="collect"))

    stranger = Throwaway.beside(fleet, guests[0], guests[0].nics[0].address)
    for guest in guests:
        fleet.in_guest(guest, ["/bin/true"])
    before = look(0)
    with stranger.present(fleet):
        attack(stranger)
    after = look(before.now)
    with judging(f"the root partition of {node.name}"):
        left = traces.left_behind(before, after)
    assert not left, f"{len(left)} traces: {'; '.join(left[:_SHOWN])}"
    for guest in guests:
        try:
            fleet.in_guest(guest, ["/bin/true"])
        except InstrumentError as error:
            raise AssertionError(f"{guest.label} does not answer after the attack: {error.fact}") from error
