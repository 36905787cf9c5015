"""What a flood comes to: what a node's ports count, how long it lasted, and how many connections a port has tracked (NET-12)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.drivers import limits
from testbed.errors import InstrumentError
from testbed.model.testbed import Guest, GuestNic
from testbed.plan.resources import Key, Kind
from testbed.verify.fleet import Fleet, Machine

_QUIET = 2.0  # seconds without a frame after which a flood is over; the switch needs some to count what it has seen
_WATCH = """
import json, re, subprocess, time
tap, wanted, quiet = json.loads(REQUEST)
def read(name):
    with open("/sys/class/net/%s/statistics/%s" % (tap, name)) as file:
        return int(file.read())
def switched():
    port = subprocess.run(["ovs-vsctl", "get", "interface", tap, "ofport"], check=True, capture_output=True, text=True).stdout.strip()
    text = subprocess.run(["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int", "table=0,in_port=" + port],
                          check=True, capture_output=True, text=True).stdout
    return sum(map(int, re.findall("n_packets=([0-9]+)", text)))
before, switched_before, began = read("rx_packets"), switched(), time.monotonic()
last, at = read("rx_packets"), began
first = changed = None
while time.monotonic() < began + wanted + 60:
    time.sleep(0.1)
    now, count = time.monotonic(), read("rx_packets")
    if count - last > 10 * (now - at):
        first, changed = first or at, now
    last, at = count, now
    if changed is not None and now > changed + quiet:
        break
print(json.dumps({"offered": last - before, "switched": switched() - switched_before, "seconds": round((changed or 0) - (first or 0), 2)}))
"""


@dataclass(frozen=True, slots=True)
class Flood:
    """What one interface has sent, as its node saw it.

    Args:
        offered: frames that came from the guest.
        switched: those of them that the switch has looked at.
        seconds: from the first frame to the last; what limits a rate saves up in the gaps between them.

    """

    offered: int
    switched: int
    seconds: float


NOTHING = Flood(0, 0, 0.0)


def watch(machine: Machine, nic: GuestNic, seconds: float) -> Flood:
    """Return what an interface sends from now on, until it has been quiet for a while.

    Args:
        seconds: how long the flood is meant to last.

    Raises:
        InstrumentError: the node cannot be asked.

    """
    found = machine.python(_WATCH, json.dumps([nic.tap, seconds, _QUIET]), timeout=seconds + 150)
    return Flood(int(found["offered"]), int(found["switched"]), float(found["seconds"]))


def offered(machine: Machine, nic: GuestNic) -> int:
    """Return the frames that an interface of a guest has given its node so far.

    Raises:
        InstrumentError: the node cannot be asked.

    """
    return int(machine.read(f"cat /sys/class/net/{nic.tap}/statistics/rx_packets"))


def received(machine: Machine, nic: GuestNic) -> int:
    """Return the octets that a node has handed to an interface of a guest so far.

    Raises:
        InstrumentError: the node cannot be asked.

    """
    return int(machine.read(f"cat /sys/class/net/{nic.tap}/statistics/tx_bytes"))


def tracked(machine: Machine, nic: GuestNic) -> int:
    """Return how many connections that are not closed a node tracks for a port, as its kernel lists them.

    Raises:
        InstrumentError: the node cannot be asked, or gives the port no zone of its own.

    """
    zone = zones(machine).get(nic.port)
    if zone is None:
        raise InstrumentError(f"{machine.name} tracks nothing for {nic.tap}", fact="the port has no zone", remedy="run `testbed up`")
    return int(machine.read(f"ovs-appctl dpctl/dump-conntrack zone={zone} | grep -vcE 'state=(CLOSE|TIME_WAIT)[)]' || true"))


def zones(machine: Machine) -> Mapping[str, int]:
    """Return the zone in which a node tracks connections, by port."""
    text = machine.read("ovn-appctl -t ovn-controller ct-zone-list")
    return {port: int(zone) for port, zone in re.findall(r"^(\S+) (\d+)$", text, re.MULTILINE)}


def unlimited(fleet: Fleet, node: str) -> list[str]:
    """Return where a node's kernel limits its guests' interfaces otherwise than the topology says.

    Raises:
        InstrumentError: the node cannot be asked, or a guest does not run.

    """
    machine, guests = fleet.machines[node], fleet.testbed.guests_on(node)
    packets = limits.observed(node, guests, machine.read(limits.OBSERVE))
    own, text = zones(machine), machine.read("ovs-appctl dpctl/ct-get-limits; cat /proc/sys/net/netfilter/nf_conntrack_max")
    shares = {int(zone): int(share) for zone, share in re.findall(r"zone=(\d+),limit=(\d+)", text)}
    findings: list[str] = []
    for guest in guests:
        for nic in guest.nics:
            live = packets.get(Key(node, Kind.LIMIT, f"{guest.label}/{nic.network}"))
            if live is None:
                raise InstrumentError(f"{guest.label} does not run", fact=f"{nic.tap} is not there", remedy="run `testbed up`")
            findings += _differences(guest, nic, live["packets"], shares.get(own.get(nic.port, -1)))
    whole, most = sum(len(guest.nics) * guest.limits.connections for guest in guests), int(text.split()[-1])
    return findings + ([f"{node} tracks {most} connections, and its guests may have {whole}"] if whole > most else [])


def _differences(guest: Guest, nic: GuestNic, packets: object, share: int | None) -> list[str]:
    facts = {"packets": (packets, guest.limits.packets), "connections": (share, guest.limits.connections)}
    return [
        f"kernel: {name} of {guest.label}/{nic.network} are limited to {live} and not {wanted}"
        for name, (live, wanted) in facts.items()
        if live != wanted
    ]
