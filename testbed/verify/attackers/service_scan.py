"""Asks every machine, from everywhere on the infrastructure, for everything that it could offer (NET-09).

Two witnesses speak about each question: what came back to who asked, and the machine's own firewall, which
tells what it has refused to whom and how often it let tunnels pass. Frames are not looked for at the target's
interfaces, which see them before the firewall does.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_address

from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from testbed.drivers.host import process
from testbed.drivers.network.rogue_host import Rogue, standing
from testbed.errors import InstrumentError
from testbed.model.exposure import SSH, Contact, Site, Socket, Stand, contacts, machines, rogue
from testbed.model.topology import LabNetwork
from testbed.payload.probe.scanner import MAX_ASKS
from testbed.verify.attackers.scan_result import WINDOW, Reading, read
from testbed.verify.fleet import Fleet
from testbed.verify.probe import frames
from testbed.verify.probe.client import Instrument, broken, listed, on_machine
from testbed.verify.probe.liveness import beating
from testbed.verify.witnesses.firewall_log import ledgers

_AGREEING = 2.0  # seconds that nodes have to agree on keys, if they have not yet


def listening(fleet: Fleet) -> dict[str, frozenset[Socket]]:
    """Return protocol and port of every socket that machines listen on, except those only they can reach; as
    they tell it.
    """
    names = list(fleet.machines)
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        texts = pool.map(lambda name: fleet.machines[name].read("ss -Hlntu"), names)
        return {name: _sockets(name, text) for name, text in zip(names, texts, strict=True)}


def _sockets(name: str, text: str) -> frozenset[Socket]:
    """Return the sockets of ss(8)'s lines; the one by which we are logged in must be among them.

    Raises:
        InstrumentError: a line cannot be read, or that socket is missing.

    """
    found: set[Socket] = set()
    for line in text.splitlines():
        words = line.split()
        host, _, port = words[4].rpartition(":") if len(words) > 4 else ("", "", "")
        if not port.isdecimal():
            raise broken(f"the sockets of {name} cannot be read", repr(line[:200]))
        if not host.startswith("127.") and host != "[::1]":
            found.add((words[0], int(port)))
    if ("tcp", SSH) not in found:
        raise broken(
            f"{name} does not tell every socket that it listens on", f"that of ssh is not among {len(found)}"
        )
    return frozenset(found)


@contextmanager
def standing_on(fleet: Fleet, network: LabNetwork) -> Iterator[tuple[Rogue, Instrument]]:
    """Let a rogue host stand on a network, with routes to the other networks through the machines, and the
    probe on it.

    Raises:
        ProvisioningError: the outer machine refuses.

    """
    own = {site.name: site for site in machines(fleet.testbed) if site.plane is network.plane}
    routes = {
        site.address: own[site.name].address
        for site in machines(fleet.testbed)
        if site.name in own and site.plane is not network.plane
    }
    with standing(fleet.lab.outer.fabric, network, rogue(network), routes) as found:
        yield found, Instrument(found.site.label, found.run, sys.executable)


def on_outer(argv: list[str], stdin: bytes, timeout: float) -> bytes:
    """Run a program in the lab's own network namespace, with that namespace's interfaces below /sys.

    Raises:
        InstrumentError: it fails, or takes longer than so many seconds.

    """
    seeing = [
        process.require("unshare", package="util-linux"),
        "--mount",
        "/bin/sh",
        "-c",
        'mount -t sysfs sys /sys && exec "$@"',
        "sh",
    ]
    argv = [*seeing, *argv]
    return process.run(
        argv,
        what="a program on the outer machine failed",
        timeout=timeout,
        error=InstrumentError,
        stdin=stdin,
    ).encode()


@contextmanager
def sources(fleet: Fleet) -> Iterator[dict[str, Instrument]]:
    """Yield the probe at every source of `testbed.model.exposure.contacts`, by the source's label or
    machine's name.
    """
    with ExitStack() as stack:
        found: dict[str, Instrument] = {
            name: on_machine(fleet, machine) for name, machine in fleet.machines.items()
        }
        found["outer"] = Instrument("the outer machine", on_outer, sys.executable)
        stack.enter_context(fleet.leavings.made("the probe on the outer machine", found["outer"].end))
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
    """Return a contact as `testbed.payload.probe.scanner` is asked for it."""
    source, base = cell.source, {"id": name, "mac": cell.source.mac}
    if cell.protocol in ("tcp", "udp"):
        client = {
            "kind": cell.protocol,
            "address": str(source.address),
            "ip": str(cell.address),
            "port": cell.port,
        }
        return {**base, **client, "frame": b"testbed".hex()}
    frame, expect = _FRAMES[cell.protocol](cell)
    return {**base, "kind": "frame", "frame": bytes(frame).ljust(60, b"\0").hex(), "expect": expect}


def _text(address: object) -> str:
    return ip_address(str(address)).packed.hex()


def _arp(cell: Contact) -> tuple[Packet, str]:
    ask = ARP(
        op=1,
        hwsrc=cell.source.mac,
        psrc=str(cell.source.address),
        hwdst="00:00:00:00:00:00",
        pdst=str(cell.address),
    )
    return Ether(
        src=cell.source.mac, dst=frames.BROADCAST
    ) / ask, f"^.{{24}}08060001080006040002.{{12}}{_text(cell.address)}"


def _icmp(cell: Contact) -> tuple[Packet, str]:
    packet = IP(src=str(cell.source.address), dst=str(cell.address)) / ICMP(id=secrets.randbits(16))
    answer = f"^.{{24}}0800.{{18}}01.{{4}}{_text(cell.address)}{_text(cell.source.address)}00"
    return Ether(src=cell.source.mac, dst=cell.target.mac) / packet / Raw(b"testbed"), answer


def _six(cell: Contact, layer: Packet, answer: str, mac: str = "", to: str = "") -> tuple[Packet, str]:
    """Return a packet to a link-local address.

    Args:
        answer: what an answer looks like behind its addresses; ``-`` stands between its next header and the
            rest.

    """
    packet = IPv6(src=str(cell.source.link_local), dst=to or str(cell.target.link_local), hlim=255) / layer
    header, _, rest = answer.partition("-")
    ends = f"{_text(cell.target.link_local)}{_text(cell.source.link_local)}"
    return Ether(
        src=cell.source.mac, dst=mac or cell.target.mac
    ) / packet, f"^.{{24}}86dd.{{12}}{header}..{ends}{rest}"


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


def knock(
    fleet: Fleet, at: Mapping[str, Instrument], cells: Sequence[Contact], window: float = WINDOW
) -> list[str]:
    """Ask everything, all sources side by side, and return what came of each: see
    `testbed.payload.probe.scanner.Ask`.

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
    with ThreadPoolExecutor(max_workers=max(1, len(scripts))) as pool:
        found = {
            mark: state
            for part in pool.map(lambda name: _ask(at[name], scripts[name], window), scripts)
            for mark, state in part
        }
    states = [found[f"k{number}"] for number in range(len(cells))]
    fleet.evidence.record(
        "fleet", "knock", f"{len(cells)} questions", "\n".join(map(_line, cells, states)), started
    )
    failed = [
        _line(cell, state) for cell, state in zip(cells, states, strict=True) if state.startswith("error")
    ]
    if failed:
        raise broken(f"{len(failed)} of {len(cells)} questions could not be asked", "; ".join(failed[:4]))
    return states


def _ask(instrument: Instrument, script: Sequence[dict[str, object]], window: float) -> list[tuple[str, str]]:
    """Ask at one place, as many questions at once as it takes, and return what came of each.

    Raises:
        InstrumentError: there is not one answer to each.

    """
    found: list[tuple[str, str]] = []
    for start in range(0, len(script), MAX_ASKS):
        part = script[start : start + MAX_ASKS]
        answer = instrument.listen({"phase": "knock", "window": window, "probes": part})
        told = [(str(item.get("id")), str(item.get("state"))) for item in listed(answer, "results")]
        if [mark for mark, _ in told] != [line["id"] for line in part]:
            fact = f"{len(told)} answers to {len(part)} questions; {answer.get('error', '')}"
            raise broken(f"{instrument.name} did not ask everything", fact[:300])
        found += told
    return found


def _line(cell: Contact, state: str) -> str:
    return f"{cell}: {state}"


def survey(fleet: Fleet) -> list[Reading]:
    """Ask every contact of a lab, between two rounds of what the administrator may; the first also lets nodes
    agree on keys.

    What must be answered and was not is asked once more. Meanwhile machines notice whether they stand still.

    Raises:
        InstrumentError: something could not be asked, or the administrator could not use what is allowed.

    """
    cells = contacts(fleet.testbed, listening(fleet))
    control = [cell for cell in cells if cell.allowed]
    own = [cell for cell in control if cell.source.stand is Stand.OUTER]
    with sources(fleet) as at:
        _require_open(control, knock(fleet, at, control, _AGREEING), "before")
        before, started = ledgers(fleet), time.monotonic()
        with beating(fleet) as stood:
            states = knock(fleet, at, cells)
            states = _once_more(fleet, at, cells, states)
        after, seconds = ledgers(fleet), time.monotonic() - started
        _require_open(own, knock(fleet, at, own), "after")
    return [
        read(cell, state, before[cell.target.name], after[cell.target.name], seconds, stood)
        for cell, state in zip(cells, states, strict=True)
    ]


def _once_more(
    fleet: Fleet, at: Mapping[str, Instrument], cells: Sequence[Contact], states: Sequence[str]
) -> list[str]:
    """Return the same states, those of allowed services that were silent as they are when asked again; of
    datagrams, counters tell.
    """
    dead = [
        cell.allowed and cell.protocol != "udp" and state not in ("open", "refused")
        for cell, state in zip(cells, states, strict=True)
    ]
    silent = [number for number, is_dead in enumerate(dead) if is_dead]
    again = dict(zip(silent, knock(fleet, at, [cells[number] for number in silent]), strict=True))
    return [again.get(number, state) for number, state in enumerate(states)]


def _require_open(cells: Sequence[Contact], states: Sequence[str], stage: str) -> None:
    pairs = zip(cells, states, strict=True)
    shut = [str(cell) for cell, state in pairs if cell.source.stand is Stand.OUTER and state != "open"]
    if shut:
        raise broken(
            f"the administrator does not get what is allowed, {stage} the questions", "; ".join(shut[:4])
        )
