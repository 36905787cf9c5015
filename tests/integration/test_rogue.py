"""A rogue host on a real bridge, in a network namespace of its own: it stands, asks, and is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

PROGRAM = """
import json, socket, sys, time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from testbed.drivers.network.bridges import Fabric
from testbed.drivers.network.rogue_host import standing
from testbed.errors import ProvisioningError
from testbed.model.resolve import resolve
from testbed.model.exposure import Contact, Site, Stand, rogue
from testbed.model.topology import Plane
from testbed.topology_file.schema import Spec
from testbed.verify.probe.client import Instrument
from testbed.verify.attackers.service_scan import on_outer, question

guest = {"networks": {"app": "10.99.0.0/24"}, "guests": {"web": {}}, "allow": []}
lab = resolve(Spec.model_validate({"version": 1, "name": "x", "nodes": {"node": {}}, "tenants": {"red": guest}}))
network = lab.lab_network(Plane.MANAGEMENT)
fabric = Fabric("x")
fabric.create_bridge(network.bridge, "lab-network=management", IPv4Interface(f"{network.gateway}/24"))
fabric.create_tap("tap-x", "tap=x", network.bridge)
for name, value in (("accept_dad", "0"), ("disable_ipv6", "1"), ("disable_ipv6", "0")):  # its MAC address is another one now
    Path(f"/proc/sys/net/ipv6/conf/{network.bridge}/{name}").write_text(value)
mac = fabric.links()[0].mac
here = Site("outer", Stand.OUTER, Plane.MANAGEMENT, mac, network.gateway)
listener = socket.create_server((str(network.gateway), 6641))
site = rogue(network)
asked = [("arp", None), ("icmp", None), ("icmp6", None), ("nd", None), ("tcp", 6641), ("tcp", 7), ("udp", 7), ("tcp6", 7)]
cells = [Contact(site, here, here.address, *service, False, "-") for service in asked]
cells.append(replace(cells[4], address=IPv4Address(int(network.gateway) + 200)))
found = {}
with standing(fabric, network, site, {}) as host:
    found["links"] = [(link.resource, link.master, link.up) for link in fabric.links()]
    probe = Instrument("rogue", host.run, sys.executable)
    lines = [question(cell, f"k{number}") for number, cell in enumerate(cells)]
    found["states"] = [item["state"] for item in probe.ask({"phase": "knock", "probes": lines})["results"]]
    back = [question(Contact(here, site, site.address, *service, False, "-"), f"b{number}") for number, service in enumerate(asked[:2])]
    outer = Instrument("outer", on_outer, sys.executable)
    found["back"] = [item["state"] for item in outer.ask({"phase": "knock", "probes": back})["results"]]
    outer.end()
    found["macs"] = [mac, fabric.links()[0].mac]
    found["own"] = host.run(["/bin/sh", "-c", "ls /sys/class/net"]).decode().split()
try:
    with standing(fabric, network, site, {}):
        raise KeyError("what a check raises")
except KeyError:
    pass
try:
    with standing(fabric, replace(network, bridge="none"), site, {}):
        found["error"] = "it stands"
except ProvisioningError as error:
    found["error"] = error.what
end = time.monotonic() + 10
while len(fabric.links()) > 2 and time.monotonic() < end:
    time.sleep(0.05)
found["left"] = [link.resource for link in fabric.links()]
print(json.dumps(found))
"""  # noqa: E501 - lines of a program


def test_a_rogue_host_stands_asks_and_is_gone() -> None:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun cannot be opened by this user")
    """It works for an ordinary user too, inside a user namespace; nothing is left,
    whatever the block raises.
    """
    unshare = shutil.which("unshare") or "unshare"
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = [
        unshare,
        *user,
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        sys.executable,
        "-c",
        PROGRAM,
    ]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=90, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [link[0] for link in found["links"]] == ["lab-network=management", "tap=x", "rogue=management"]
    assert found["links"][2][1:] == ["br-management", True]
    assert found["macs"] == [found["macs"][0]] * 2, "the outer machine's MAC address changes"
    assert found["states"][:-1] == ["open", "open", "open", "open", "open", "refused", "refused", "open"]
    assert found["states"][-1] in ("silent", "unreachable")
    assert sorted(found["own"]) == ["lo", "rogue0"]
    assert found["back"] == ["open", "open"]
    assert found["error"].startswith("cannot make the rogue host's interface rogue-management"[:52])
    assert found["left"] == ["lab-network=management", "tap=x"]
