"""Scans every machine for services, from every position on the infrastructure (NET-09).

Each contact has two witnesses: the answer that the source receives, and the machine's own firewall, which
records refusals by source and counts accepted tunnel packets. Frames are not recorded at the target's
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
from testbed.drivers.network.rogue_host import Rogue, rogue_host
from testbed.errors import InstrumentError
from testbed.model.cell import by_pair
from testbed.model.exposure import (
    SSH,
    EndpointOwner,
    ExposureCell,
    InfraEndpoint,
    Socket,
    contacts,
    machines,
    rogue,
)
from testbed.model.topology import LabNetwork
from testbed.payload.probe.scanner import MAX_ASKS
from testbed.verify.attackers.scan_result import WINDOW, ScanResult, read
from testbed.verify.fleet import Fleet
from testbed.verify.probe import frames
from testbed.verify.probe.client import ProbeClient, inconclusive, listed, on_machine
from testbed.verify.probe.liveness import beating
from testbed.verify.probe.requests import Knock
from testbed.verify.witnesses.firewall_log import ledgers

_AGREEING = 2.0  # seconds for nodes to negotiate keys, if they have not yet


def listening(fleet: Fleet) -> dict[str, frozenset[Socket]]:
    """Return protocol and port of every socket that each machine reports as listening.

    Sockets on loopback addresses are left out.
    """
    names = list(fleet.machines)
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        texts = pool.map(lambda name: fleet.machines[name].read("ss -Hlntu"), names)
        return {name: _sockets(name, text) for name, text in zip(names, texts, strict=True)}


def _sockets(name: str, text: str) -> frozenset[Socket]:
    """Parse the lines of ss(8); the socket of our own ssh session must be among them.

    Raises:
        InstrumentError: a line cannot be read, or that socket is missing.
    """
    found: set[Socket] = set()
    for line in text.splitlines():
        words = line.split()
        host, _, port = words[4].rpartition(":") if len(words) > 4 else ("", "", "")
        if not port.isdecimal():
            raise inconclusive(f"the sockets of {name} cannot be read", repr(line[:200]))
        if not host.startswith("127.") and host != "[::1]":
            found.add((words[0], int(port)))
    if ("tcp", SSH) not in found:
        raise inconclusive(
            f"{name} does not tell every socket that it listens on", f"that of ssh is not among {len(found)}"
        )
    return frozenset(found)


@contextmanager
def rogue_host_on(fleet: Fleet, network: LabNetwork) -> Iterator[tuple[Rogue, ProbeClient]]:
    """Attach a rogue host to a network and yield it with its probe.

    It has routes to the other networks through the machines.

    Raises:
        ProvisioningError: the outer machine refuses.
    """
    own = {site.name: site for site in machines(fleet.topology) if site.plane is network.plane}
    routes = {
        site.address: own[site.name].address
        for site in machines(fleet.topology)
        if site.name in own and site.plane is not network.plane
    }
    with rogue_host(fleet.lab.outer.fabric, network, rogue(network), routes) as found:
        yield found, ProbeClient(found.site.label, found.run, sys.executable)


def on_outer(argv: list[str], stdin: bytes, timeout: float) -> bytes:
    """Run a program in the lab's network namespace, with a /sys that shows its interfaces.

    Raises:
        InstrumentError: it fails, or takes longer than `timeout` seconds.
    """
    # A new mount namespace, so that the fresh sysfs of this network namespace hides no other process's /sys.
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
def sources(fleet: Fleet) -> Iterator[dict[str, ProbeClient]]:
    """Yield the probe at every source of `testbed.model.exposure.contacts`.

    Keys are the source's label or the machine's name.
    """
    with ExitStack() as stack:
        found: dict[str, ProbeClient] = {
            name: on_machine(fleet, machine) for name, machine in fleet.machines.items()
        }
        found["outer"] = ProbeClient("the outer machine", on_outer, sys.executable)
        stack.enter_context(fleet.leavings.made("the probe on the outer machine", found["outer"].end))
        for network in fleet.topology.networks:
            host, instrument = stack.enter_context(rogue_host_on(fleet, network))
            found[host.site.label] = instrument
        yield found


def _asker(site: InfraEndpoint) -> str:
    return site.label if site.stand is EndpointOwner.ROGUE else site.name


def _with_mac(fleet: Fleet, site: InfraEndpoint) -> InfraEndpoint:
    """Return a site with the MAC address of its bridge, which the kernel chose."""
    bridge = fleet.topology.lab_network(site.plane).bridge
    return replace(site, mac=next(link.mac for link in fleet.lab.outer.fabric.links() if link.name == bridge))


def question(cell: ExposureCell, name: str) -> dict[str, object]:
    """Return a contact in the format of `testbed.payload.probe.scanner`."""
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


# `_arp` and the following functions return a packet, and a regular expression for the hexadecimal digits of
# its answer: 24 digits of MAC addresses, the ethertype, and so on.
def _text(address: object) -> str:
    return ip_address(str(address)).packed.hex()


def _arp(cell: ExposureCell) -> tuple[Packet, str]:
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


def _icmp(cell: ExposureCell) -> tuple[Packet, str]:
    packet = IP(src=str(cell.source.address), dst=str(cell.address)) / ICMP(id=secrets.randbits(16))
    answer = f"^.{{24}}0800.{{18}}01.{{4}}{_text(cell.address)}{_text(cell.source.address)}00"
    return Ether(src=cell.source.mac, dst=cell.target.mac) / packet / Raw(b"testbed"), answer


def _six(cell: ExposureCell, layer: Packet, answer: str, mac: str = "", to: str = "") -> tuple[Packet, str]:
    """Return a packet to a link-local address, and a pattern of its answer.

    Args:
        answer: hexadecimal pattern of an answer: its next header, ``-``, and the octets after its addresses.
    """
    packet = IPv6(src=str(cell.source.link_local), dst=to or str(cell.target.link_local), hlim=255) / layer
    header, _, rest = answer.partition("-")
    ends = f"{_text(cell.target.link_local)}{_text(cell.source.link_local)}"
    return Ether(
        src=cell.source.mac, dst=mac or cell.target.mac
    ) / packet, f"^.{{24}}86dd.{{12}}{header}..{ends}{rest}"


def _solicitation(cell: ExposureCell) -> tuple[Packet, str]:
    group, mac = frames.solicited(str(cell.target.link_local))
    return _six(cell, ICMPv6ND_NS(tgt=str(cell.target.link_local)), "3a-88", mac, group)


def _segment(cell: ExposureCell) -> tuple[Packet, str]:
    return _six(cell, frames.syn(cell.port or 0), f"06-{cell.port:04x}")


def _datagram(cell: ExposureCell) -> tuple[Packet, str]:
    packet, answer = _six(cell, frames.datagram(cell.port or 0) / Raw(b"testbed"), f"11-{cell.port:04x}")
    unreachable = _six(cell, Raw(), "3a-01")[1]
    return packet, f"{answer}|{unreachable}"


_FRAMES: dict[str, Callable[[ExposureCell], tuple[Packet, str]]] = {
    "arp": _arp,
    "icmp": _icmp,
    "nd": _solicitation,
    "icmp6": lambda cell: _six(cell, ICMPv6EchoRequest(id=secrets.randbits(16)), "3a-81"),
    "tcp6": _segment,
    "udp6": _datagram,
}


def scan(
    fleet: Fleet, at: Mapping[str, ProbeClient], cells: Sequence[ExposureCell], window: float = WINDOW
) -> list[str]:
    """Make all contacts, all sources in parallel, and return the state of each.

    See `testbed.payload.probe.scanner.Ask`.

    Args:
        window: seconds for answers.

    Raises:
        InstrumentError: a contact could not be made.
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
        raise inconclusive(
            f"{len(failed)} of {len(cells)} questions could not be asked", "; ".join(failed[:4])
        )
    return states


def _ask(
    instrument: ProbeClient, script: Sequence[dict[str, object]], window: float
) -> list[tuple[str, str]]:
    """Make the contacts of one source in batches, and return the state of each.

    Raises:
        InstrumentError: the answers do not match the contacts.
    """
    found: list[tuple[str, str]] = []
    for start in range(0, len(script), MAX_ASKS):
        part = script[start : start + MAX_ASKS]
        answer = instrument.listen(Knock(phase="knock", window=window, probes=part))
        told = [(str(item.get("id")), str(item.get("state"))) for item in listed(answer, "results")]
        if [mark for mark, _ in told] != [line["id"] for line in part]:
            fact = f"{len(told)} answers to {len(part)} questions; {answer.get('error', '')}"
            raise inconclusive(f"{instrument.name} did not ask everything", fact[:300])
        found += told
    return found


def _line(cell: ExposureCell, state: str) -> str:
    return f"{cell}: {state}"


def scan_all(fleet: Fleet) -> list[ScanResult]:
    """Make every contact of a lab, between two rounds of the administrator's allowed contacts.

    The first round also lets nodes negotiate keys. An allowed service that did not answer is asked once
    more. During the scan, machines record whether they stall.

    Raises:
        InstrumentError: a contact could not be made, or an allowed contact of the administrator failed.
    """
    cells = contacts(fleet.topology, listening(fleet))
    control = [cell for cell in cells if cell.allowed]
    own = [cell for cell in control if cell.source.stand is EndpointOwner.OUTER]
    with sources(fleet) as at:
        _require_open(control, scan(fleet, at, control, _AGREEING), "before")
        before, started = ledgers(fleet), time.monotonic()
        with beating(fleet) as stood:
            states = scan(fleet, at, cells)
            states = _once_more(fleet, at, cells, states)
        after, seconds = ledgers(fleet), time.monotonic() - started
        _require_open(own, scan(fleet, at, own), "after")
    return [
        read(cell, state, before[cell.target.name], after[cell.target.name], seconds, stood)
        for cell, state in zip(cells, states, strict=True)
    ]


def _once_more(
    fleet: Fleet, at: Mapping[str, ProbeClient], cells: Sequence[ExposureCell], states: Sequence[str]
) -> list[str]:
    """Repeat silent contacts to allowed services, and return all states.

    Datagrams are left out: counters show whether they were accepted.
    """
    dead = [
        cell.allowed and cell.protocol != "udp" and state not in ("open", "refused")
        for cell, state in zip(cells, states, strict=True)
    ]
    silent = [number for number, is_dead in enumerate(dead) if is_dead]
    again = dict(zip(silent, scan(fleet, at, [cells[number] for number in silent]), strict=True))
    return [again.get(number, state) for number, state in enumerate(states)]


def _require_open(cells: Sequence[ExposureCell], states: Sequence[str], stage: str) -> None:
    pairs = zip(cells, states, strict=True)
    shut = [cell for cell, state in pairs if cell.source.stand is EndpointOwner.OUTER and state != "open"]
    if shut:
        raise inconclusive(
            f"the administrator does not get what is allowed, {stage} the questions", by_pair(shut)
        )
