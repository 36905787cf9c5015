"""The guard of IPv6 neighbours in the kernel: it stops the frames that its witness predicts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from checks.support.attacker_positions import positions
from checks.support.network_observation import control_frames
from checks.support.spoofed_frames import forgeries
from testbed.model.reachability import ReachMatrix
from testbed.model.resolve import resolve
from testbed.plan.host_config.nd_guard import allowed, guarded, links
from testbed.topology_file.loader import read
from testbed.verify.observation.arrivals import matrix_probes
from testbed.verify.witnesses.nd_guard_model import Guard

ROOT = Path(__file__).parents[2]
RULES, ATTACH = (
    ROOT / "playbooks/roles/switch/files" / name for name in ("neighbours.nft", "guard-neighbours")
)
LAB = resolve(read(ROOT / "topologies/three-tenants-dual-stack.yaml").spec)
NODE = LAB.nodes[0]


def _unable() -> str:
    """Return why this machine cannot load the rules; empty if it can.

    They are written for the nftables of the nodes.
    """
    if os.geteuid() != 0 or shutil.which("nft") is None:
        return "needs root and nft"
    tried = subprocess.run(
        ["unshare", "--net", "nft", "-f", RULES], capture_output=True, check=False, timeout=30
    )
    return "" if tried.returncode == 0 else "this nft is older than the nodes' and cannot read the rules"


pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(_unable()), reason=_unable())]

# Frames enter at the far ends of guarded interfaces; behind these is a bridge, and behind that a socket.
PROGRAM = """
import json, select, socket, subprocess, sys
request = json.loads(sys.stdin.read())
def do(*argv):
    subprocess.run(argv, check=True)
do("ip", "link", "add", "bridge0", "type", "bridge", "mcast_snooping", "0", "ageing_time", "0")
do("ip", "link", "add", "out", "type", "veth", "peer", "name", "seen")
for tap in request["taps"]:
    do("ip", "link", "add", tap, "type", "veth", "peer", "name", f"x{tap}")
    do("ip", "link", "set", f"x{tap}", "up")
for name in ("out", *request["taps"]):
    do("ip", "link", "set", name, "master", "bridge0", "up")
do("ip", "link", "set", "seen", "promisc", "on", "up")
do("ip", "link", "set", "bridge0", "up")
do("nft", "-f", request["rules"])
do("sh", request["attach"], *request["taps"])
for name in ("allowed", "links"):
    do("nft", "add element netdev neighbours %s { %s }" % (name, ", ".join(f"{tap} . {value}" for tap, value in request[name])))
hearer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
hearer.bind(("seen", 3))
callers = {}
for tap in request["taps"]:
    callers[tap] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    callers[tap].bind((f"x{tap}", 0))
beat = bytes.fromhex("ffffffffffff0a000000000088b5") + bytes(46)
def passes(tap, frame):
    callers[tap].send(frame)
    callers[tap].send(beat)
    passed = False
    while select.select([hearer], [], [], 2)[0]:
        got = hearer.recv(4096)
        passed |= got[:len(frame)] == frame
        if got == beat:
            return passed
    raise SystemExit("the wire is dead")
for tap in request["taps"]:  # the bridge's ports take a moment
    for _ in range(50):
        callers[tap].send(beat)
        if select.select([hearer], [], [], 0.2)[0]:
            break
while select.select([hearer], [], [], 0.3)[0]:
    hearer.recv(4096)
print(json.dumps([passes(tap, bytes.fromhex(frame)) for tap, frame in request["frames"]]))
"""  # noqa: E501 - lines of a program


def _frames() -> list[tuple[str, str, bytes]]:
    """Return all frames that guests of the node send in an observation over IPv6.

    Each has a name, an interface and its content.
    """
    fleet: Any = SimpleNamespace(topology=LAB, matrix=ReachMatrix.of(LAB))
    taps = {nic.mac: nic.tap for guest in LAB.guests_on(NODE.name) for nic in guest.nics}
    probes = list(matrix_probes(fleet.matrix.cells))
    probes += [forgery.probe for forgery in forgeries(fleet)]
    probes += [
        probe
        for position in positions(fleet)
        if position.port
        for probe in control_frames(position, "before")
    ]
    sent = [
        (probe.mark, taps[probe.sender.mac], probe.frame(b"tb-0-x."))
        for probe in probes
        if probe.frame and probe.sender.mac in taps
    ]
    bridged = [item for item in sent if not item[2][6] & 1]  # a bridge drops what claims to come from a group
    return [item for item in bridged if item[2][12:14] == b"\x86\xdd"] + _oddities()


def _oddities() -> list[tuple[str, str, bytes]]:
    tap, address = allowed(LAB, NODE)[0]
    mac = next(nic.mac for guest in LAB.guests for nic in guest.nics if nic.tap == tap)
    head = Ether(src="0a:00:00:00:00:01", dst="33:33:00:00:00:01") / IPv6(
        src="fd00:a::99", dst=address, hlim=255
    )
    ask = ICMPv6ND_NS(tgt=address)
    packets = {
        "plain": head / ask,
        "behind options": head / IPv6ExtHdrHopByHop() / ask / ICMPv6NDOptSrcLLAddr(lladdr=mac),
        "behind options and bare": head / IPv6ExtHdrHopByHop() / ask,
        "in the first fragment": head / IPv6ExtHdrFragment(m=1) / ask,
        "in a later fragment": head / IPv6ExtHdrFragment(offset=9, nh=58) / Raw(bytes(ask)),
        "echo in a first fragment": head / IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest(),
        "for another": head / ICMPv6ND_NS(tgt="fd00:a::77"),
    }
    return [(name, tap, bytes(packet).ljust(70, b"\0")) for name, packet in packets.items()]


def test_the_kernel_stops_what_the_witness_says() -> None:
    frames, taps = _frames(), guarded(LAB, NODE)
    request = {
        "taps": taps,
        "allowed": allowed(LAB, NODE),
        "links": links(LAB, NODE),
        "rules": str(RULES),
        "attach": str(ATTACH),
        "frames": [(tap, frame.hex()) for _, tap, frame in frames],
    }
    argv = ["unshare", "--net", sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        argv, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr + done.stdout
    guard = Guard(
        whole=True, allowed=frozenset(allowed(LAB, NODE)), links=frozenset(links(LAB, NODE)), findings=()
    )
    said = [not guard.stops(tap, frame) for _, tap, frame in frames]
    found = json.loads(done.stdout)
    assert [
        (name, mine, kernel)
        for (name, _, _), mine, kernel in zip(frames, said, found, strict=True)
        if mine != kernel
    ] == []
    assert 0 < sum(found) < len(found)
    passing = {name for (name, _, _), passed in zip(frames, found, strict=True) if passed}
    assert {
        "na0before",
        "plain",
        "behind options",
        "in a later fragment",
        "echo in a first fragment",
    } <= passing
    assert not {"in the first fragment", "behind options and bare", "for another"} & passing
