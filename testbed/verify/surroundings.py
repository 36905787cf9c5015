"""Asks every machine, from everywhere on the infrastructure, for everything that it could offer (NET-09).

Two witnesses speak about each question: what came back to who asked, and the machine's own firewall, which tells what
it has refused to whom and how often it let tunnels pass. Frames are not looked for at the target's interfaces, which
see them before the firewall does.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address

from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from testbed.drivers import process
from testbed.drivers.rogue import Rogue, standing
from testbed.errors import InstrumentError
from testbed.model.surroundings import Contact, Site, Socket, Stand, contacts, machines, rogue
from testbed.model.testbed import LabNetwork
from testbed.verify import frames
from testbed.verify.fleet import Fleet
from testbed.verify.ledger import Ledger, ledgers
from testbed.verify.probing import Instrument, broken, on_machine, results_of

_WINDOW = 4.0  # seconds; a neighbour that does not answer is unreachable after three
_AGREEING = 2.0  # seconds that nodes have to agree on keys, if they have not yet


def listening(fleet: Fleet) -> dict[str, frozenset[Socket]]:
    """Return protocol and port of every socket that machines listen on, except those only they can reach; as they tell it."""
    names = list(fleet.machines)
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        texts = pool.map(lambda name: fleet.machines[name].read("ss -Hlntu | awk '{print $1, $5}'"), names)
        return {name: frozenset(_sockets(text)) for name, text in zip(names, texts, strict=True)}


def _sockets(text: str) -> Iterator[Socket]:
    for line in text.splitlines():
        protocol, _, place = line.partition(" ")
        host, _, port = place.rpartition(":")
        if not host.startswith("127.") and host != "[::1]" and port.isdecimal():
            yield protocol, int(port)


@contextmanager
def standing_on(fleet: Fleet, network: LabNetwork) -> Iterator[tuple[Rogue, Instrument]]:
    """Let a rogue host stand on a network, with routes to the other networks through the machines, and the probe on it.

    Raises:
        ProvisioningError: the outer machine refuses.

    """
    own = {site.name: site for site in machines(fleet.testbed) if site.plane is network.plane}
    routes = {
        site.address: own[site.name].address for site in machines(fleet.testbed) if site.name in own and site.plane is not network.plane
    }
    with standing(fleet.lab.outer.fabric, network, rogue(network), routes) as found:
        yield found, Instrument(found.site.label, found.run, sys.executable)


def on_outer(argv: list[str], stdin: bytes, timeout: float) -> bytes:
    """Run a program in the lab's own network namespace, with that namespace's interfaces below /sys.

    Raises:
        InstrumentError: it fails, or takes longer than so many seconds.

    """
    seeing = [process.require("unshare", package="util-linux"), "--mount", "/bin/sh", "-c", 'mount -t sysfs sys /sys && exec "$@"', "sh"]
    argv = [*seeing, *argv]
    return process.run(argv, what="a program on the outer machine failed", timeout=timeout, error=InstrumentError, stdin=stdin).encode()


@contextmanager
def sources(fleet: Fleet) -> Iterator[dict[str, Instrument]]:
    """Yield the probe at every source of `testbed.model.surroundings.contacts`, by the source's label or machine's name."""
    with ExitStack() as stack:
        found: dict[str, Instrument] = {name: on_machine(fleet, machine) for name, machine in fleet.machines.items()}
        found["outer"] = Instrument("the outer machine", on_outer, sys.executable)
        stack.callback(found["outer"].end)
        for network in fleet.testbed.networks:
            host, instrument = stack.enter_context(standing_on(fleet, network))
            found[host.site.label] = instrument
        yield found


def _asker(site: Site) -> str:
    return site.label if site.stand is Stand.ROGUE else site.name


def _with_mac(fleet: Fleet, site: Site) -> Site:
    """Return a site with its MAC address; the kernel has chosen that of the outer machine's bridge."""
    bridge = fleet.testbed.lab_network(site.plane).bridge
    return replace(site, mac=next(link.mac for link in fleet.lab.outer.fabric.links() if link.name == bridge))


def question(cell: Contact, name: str) -> dict[str, object]:
    """Return a contact as `testbed.guest.knocker` is asked for it."""
    source, base = cell.source, {"id": name, "mac": cell.source.mac}
    if cell.protocol in ("tcp", "udp"):
        client = {"kind": cell.protocol, "address": str(source.address), "ip": str(cell.address), "port": cell.port}
        return {**base, **client, "frame": b"testbed".hex()}
    frame, expect = _FRAMES[cell.protocol](cell)
    return {**base, "kind": "frame", "frame": bytes(frame).ljust(60, b"\0").hex(), "expect": expect}


def _text(address: object) -> str:
    return ip_address(str(address)).packed.hex()


def _arp(cell: Contact) -> tuple[Packet, str]:
    ask = ARP(op=1, hwsrc=cell.source.mac, psrc=str(cell.source.address), hwdst="00:00:00:00:00:00", pdst=str(cell.address))
    return Ether(src=cell.source.mac, dst=frames.BROADCAST) / ask, f"^.{{24}}08060001080006040002.{{12}}{_text(cell.address)}"


def _icmp(cell: Contact) -> tuple[Packet, str]:
    packet = IP(src=str(cell.source.address), dst=str(cell.address)) / ICMP(id=secrets.randbits(16))
    answer = f"^.{{24}}0800.{{18}}01.{{4}}{_text(cell.address)}{_text(cell.source.address)}00"
    return Ether(src=cell.source.mac, dst=cell.target.mac) / packet / Raw(b"testbed"), answer


def _six(cell: Contact, layer: Packet, answer: str, mac: str = "", to: str = "") -> tuple[Packet, str]:
    """Return a packet to a link-local address.

    Args:
        answer: what an answer looks like behind its addresses; ``-`` stands between its next header and the rest.

    """
    packet = IPv6(src=str(cell.source.link_local), dst=to or str(cell.target.link_local), hlim=255) / layer
    header, _, rest = answer.partition("-")
    ends = f"{_text(cell.target.link_local)}{_text(cell.source.link_local)}"
    return Ether(src=cell.source.mac, dst=mac or cell.target.mac) / packet, f"^.{{24}}86dd.{{12}}{header}..{ends}{rest}"


def _solicitation(cell: Contact) -> tuple[Packet, str]:
    group, mac = frames.solicited(str(cell.target.link_local))
    return _six(cell, ICMPv6ND_NS(tgt=str(cell.target.link_local)), "3a-88", mac, group)


def _segment(cell: Contact) -> tuple[Packet, str]:
    return _six(cell, frames.syn(cell.port or 0), f"06-{cell.port:04x}")


def _datagram(cell: Contact) -> tuple[Packet, str]:
    packet, answer = _six(cell, frames.datagram(cell.port or 0) / Raw(b"testbed"), f"11-{cell.port:04x}")
    unreachable = _six(cell, Raw(), "3a-01")[1]
    return packet, f"{answer}|{unreachable}"


_FRAMES: dict[str, Callable[[Contact], tuple[Packet, str]]] = {
    "arp": _arp,
    "icmp": _icmp,
    "nd": _solicitation,
    "icmp6": lambda cell: _six(cell, ICMPv6EchoRequest(id=secrets.randbits(16)), "3a-81"),
    "tcp6": _segment,
    "udp6": _datagram,
}


def knock(fleet: Fleet, at: Mapping[str, Instrument], cells: Sequence[Contact], window: float = _WINDOW) -> list[str]:
    """Ask everything, all sources side by side, and return what came of each: see `testbed.guest.knocker.Ask`.

    Args:
        window: seconds that answers have.

    Raises:
        InstrumentError: something could not be asked.

    """
    macs = {cell.source: _with_mac(fleet, cell.source) for cell in cells if not cell.source.mac}
    cells = [replace(cell, source=macs.get(cell.source, cell.source)) for cell in cells]
    scripts: dict[str, list[dict[str, object]]] = {}
    for number, cell in enumerate(cells):
        scripts.setdefault(_asker(cell.source), []).append(question(cell, f"k{number}"))
    started = time.time()
    with ThreadPoolExecutor(max_workers=len(scripts)) as pool:
        answers = pool.map(lambda name: at[name].listen({"phase": "knock", "window": window, "probes": scripts[name]}), scripts)
        found = {mark: str(item.get("state")) for part in results_of(dict(zip(scripts, answers, strict=True))).values()
                 for mark, item in part.items()}  # fmt: skip
    states = [found.get(f"k{number}", "error: no answer") for number in range(len(cells))]
    fleet.evidence.record("fleet", "knock", f"{len(cells)} questions", "\n".join(map(_line, cells, states)), started)
    failed = [_line(cell, state) for cell, state in zip(cells, states, strict=True) if state.startswith("error")]
    if failed:
        raise broken(f"{len(failed)} of {len(cells)} questions could not be asked", "; ".join(failed[:4]))
    return states


def _line(cell: Contact, state: str) -> str:
    return f"{cell}: {state}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one question came to.

    Args:
        state: what came back to who asked.
        refused: the machine's firewall says that it refused it.
        passed: the machine's firewall says that it let something pass there meanwhile.

    """

    cell: Contact
    state: str
    refused: bool
    passed: bool

    @property
    def reached(self) -> bool:
        """Whether the service was reached: it answered, or was let pass; a datagram may get no answer."""
        return self.state in ("open", "refused") or (self.cell.protocol == "udp" and not self.refused and self.passed)

    @property
    def unclear(self) -> bool:
        """Whether neither witness saw it: it may not even have arrived."""
        return self.cell.protocol in ("tcp", "udp") and not self.reached and not self.refused

    def __str__(self) -> str:
        return f"{self.cell}: {self.state}{', let pass' if self.passed else ''}{', not refused' if not self.refused else ''}"


def survey(fleet: Fleet) -> list[Reading]:
    """Ask every contact of a lab, between two rounds of what the administrator may; the first also lets nodes agree on keys.

    Raises:
        InstrumentError: something could not be asked, or the administrator could not use what is allowed.

    """
    cells = contacts(fleet.testbed, listening(fleet))
    control = [cell for cell in cells if cell.allowed]
    own = [cell for cell in control if cell.source.stand is Stand.OUTER]
    with sources(fleet) as at:
        _require_open(control, knock(fleet, at, control, _AGREEING), "before")
        before, started = ledgers(fleet), time.monotonic()
        states = knock(fleet, at, cells)
        after, seconds = ledgers(fleet), time.monotonic() - started
        _require_open(own, knock(fleet, at, own), "after")
    return [
        read(cell, state, before[cell.target.name], after[cell.target.name], seconds)
        for cell, state in zip(cells, states, strict=True)
    ]


def _require_open(cells: Sequence[Contact], states: Sequence[str], stage: str) -> None:
    pairs = zip(cells, states, strict=True)
    shut = [str(cell) for cell, state in pairs if cell.source.stand is Stand.OUTER and state != "open"]
    if shut:
        raise broken(f"the administrator does not get what is allowed, {stage} the questions", "; ".join(shut[:4]))


def read(cell: Contact, state: str, before: Ledger, after: Ledger, seconds: float) -> Reading:
    """Return what a question came to, from its answer and what the firewall told before and so many seconds after."""
    port = cell.port or 0
    refused = after.refuses(str(cell.source.address), str(cell.address), cell.protocol, port, seconds)
    passed = after.passed.get(port, 0) > before.passed.get(port, 0)
    return Reading(cell, state, refused, cell.protocol == "udp" and passed)
