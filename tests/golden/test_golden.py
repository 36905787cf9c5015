"""Exact texts: the plans of good topologies, and the messages about bad ones.

With TESTBED_UPDATE_GOLDEN=1 the files are written again; read the difference before you keep it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.errors import TopologyError
from testbed.model.resolve import resolve
from testbed.plan.diff import diff
from testbed.plan.host_config.identity import MachineKeys, identity_files
from testbed.plan.host_config.settings import settings
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.plan.libvirt_xml.machine import (
    GUEST_TO_SAVE,
    Hardware,
    MachineFiles,
    anonymous_xml,
    machine_xml,
    read_mark,
)
from testbed.plan.render import text
from testbed.plan.resources import OUTER, desired, guest_properties, machine_properties, places
from testbed.report.graph import dot, mermaid
from testbed.topology_file.loader import load, read
from testbed.topology_file.quantities import GIB
from tests.sim.simulator import INPUTS

HERE = Path(__file__).parent
TOPOLOGIES = HERE.parents[1] / "topologies"
BAD = sorted(path.stem for path in (HERE / "bad").glob("*.yaml"))


def _same(file: Path, found: str) -> None:
    if os.environ.get("TESTBED_UPDATE_GOLDEN"):
        file.write_text(found)
    assert file.read_text() == found


@pytest.mark.parametrize("name", BAD)
def test_a_bad_topology_is_told_everything_at_once(name: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load((HERE / f"bad/{name}.yaml").read_text(), f"{name}.yaml", machine_memory=24 * GIB)
    _same(HERE / f"bad/{name}.txt", f"{caught.value}\n")


@pytest.mark.parametrize(
    "name", ["one-node", "two-tenants", "three-tenants-dual-stack", "separated", "udp-and-icmp"]
)
def test_a_good_topology_becomes_this(name: str) -> None:
    topology = resolve(read(TOPOLOGIES / f"{name}.yaml").spec)
    plan = diff(desired(topology, INPUTS), {}, frozenset(places(topology)) - {OUTER})
    _same(HERE / f"good/{name}.plan.txt", text(plan) + "\n")
    _same(HERE / f"good/{name}.dot", dot(topology))
    _same(HERE / f"good/{name}.mmd", mermaid(topology))
    node, guest = topology.nodes[0], topology.guests[0]
    files = MachineFiles(
        "/i/vmlinuz", "/i/initrd", ("/m/vda", "/m/vdb", "/m/vdc"), "/m/identity.tar", "/m/console.log"
    )
    properties = machine_properties(topology, node, INPUTS)
    xml = machine_xml(topology, node, INPUTS.environment, files, properties)
    assert read_mark(xml) == (topology.name, node.name, dict(properties))
    _same(HERE / f"good/{name}.node.xml", xml)
    woken = machine_xml(topology, node, INPUTS.environment, files, properties, generation="a-random-uuid")
    _same(HERE / f"good/{name}.woken.xml", woken)
    saved = anonymous_xml(
        Hardware.of(node, INPUTS.environment),
        INPUTS.environment,
        files,
        "another-random-uuid",
        {GUEST_TO_SAVE: "/m/identity.tar"},
    )
    assert read_mark(saved) is None
    _same(HERE / f"good/{name}.saved.xml", saved)
    _same(HERE / f"good/{name}.guest.xml", guest_xml(topology, guest, guest_properties(guest, INPUTS)))
    lines = [
        "\n  ".join((f"{item.name}: {item.value!r}", *item.observe, item.repair))
        for item in settings(topology, node)
    ]
    _same(HERE / f"good/{name}.settings.txt", "\n".join(lines) + "\n")
    keys = MachineKeys(
        b"key",
        b"certificate",
        "authority",
        b"tls key",
        b"tls certificate",
        b"tls authority",
        b"administrators",
    )
    parts = [
        f"== {path}\n{content.decode()}"
        for path, content in sorted(identity_files(topology, node, keys).items())
    ]
    _same(HERE / f"good/{name}.identity.txt", "\n".join(parts) + "\n")
