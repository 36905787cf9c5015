"""Topologies of odd shapes: what a lab may lack, one thing each, so that no wall hangs on what most labs
have.
"""

from __future__ import annotations

from pathlib import Path

from testbed.model.resolve import resolve
from testbed.model.topology import Testbed
from testbed.topology_file.loader import load, read

TOPOLOGIES = Path(__file__).parents[1] / "topologies"

_TWO = "nodes: {node-a: {}, node-b: {}}\n"
_ONE = "nodes: {node-a: {}}\n"
_PAIR = "networks: {app: 10.0.0.0/24}, guests: {web: {node: %s}, db: {node: %s}}"

ODD = {
    "no flow": _TWO + "tenants:\n"
    f"  red: {{{_PAIR % ('node-a', 'node-b')}}}\n"
    f"  blue: {{{_PAIR % ('node-b', 'node-a')}}}\n",
    "no flow on one node": _ONE + "tenants:\n"
    f"  red: {{{_PAIR % ('node-a', 'node-a')}}}\n"
    "  blue: {networks: {app: 10.0.0.0/24}, guests: {web: {}}}\n",
    "udp only": _TWO + "tenants:\n"
    f"  red: {{{_PAIR % ('node-a', 'node-b')}, allow: [web -> db udp/514]}}\n"
    f"  blue: {{{_PAIR % ('node-b', 'node-a')}}}\n",
    "icmp only": _TWO + "tenants:\n"
    f"  red: {{{_PAIR % ('node-a', 'node-b')}, allow: [web -> db icmp]}}\n"
    f"  blue: {{{_PAIR % ('node-b', 'node-a')}}}\n",
    "one tenant on each node": _TWO + "tenants:\n"
    f"  red: {{{_PAIR % ('node-a', 'node-a')}, allow: [web -> db tcp/80]}}\n"
    f"  blue: {{{_PAIR % ('node-b', 'node-b')}, allow: [web -> db tcp/80]}}\n",
    "one guest on each node": _TWO + "tenants:\n"
    "  red: {networks: {app: 10.0.0.0/24}, guests: {web: {node: node-a}}}\n"
    "  blue: {networks: {app: 10.0.0.0/24}, guests: {web: {node: node-b}}}\n",
    "an empty first node": _TWO + "tenants:\n"
    f"  red: {{{_PAIR % ('node-b', 'node-b')}, allow: [web -> db tcp/80]}}\n"
    "  blue: {networks: {app: 10.0.0.0/24}, guests: {web: {node: node-b}}}\n",
    "an empty node in the middle": "nodes: {node-a: {}, node-b: {}, node-c: {}}\ntenants:\n"
    f"  red: {{{_PAIR % ('node-a', 'node-c')}, allow: [web -> db tcp/80]}}\n"
    f"  blue: {{{_PAIR % ('node-c', 'node-a')}, allow: [web -> db tcp/80]}}\n",
    "one tenant": _ONE + f"tenants:\n  red: {{{_PAIR % ('node-a', 'node-a')}, allow: [web -> db tcp/80]}}\n",
    "one tenant on two nodes": _TWO + "tenants:\n"
    f"  red: {{{_PAIR % ('node-a', 'node-b')}, allow: [web -> db tcp/80]}}\n",
    "one tenant without a flow": _ONE + f"tenants:\n  red: {{{_PAIR % ('node-a', 'node-a')}}}\n",
    "one guest": _ONE + "tenants:\n  red: {networks: {app: 10.0.0.0/24}, guests: {web: {}}}\n",
    "one guest beside an empty node": _TWO
    + "tenants:\n  red: {networks: {app: 10.0.0.0/24}, guests: {web: {node: node-b}}}\n",
    "guests apart in one tenant": _ONE + "tenants:\n"
    "  red: {networks: {app: 10.0.0.0/24, back: 10.0.1.0/24}, guests: {web: {network: app}, db: "
    "{network: back}}}\n",
    "a flow on a second network": _TWO + "tenants:\n"
    "  red:\n    networks: {app: 10.0.0.0/24, back: 10.0.1.0/24}\n"
    "    guests: {web: {node: node-a, network: [app, back]}, db: {node: node-b, network: back}}\n"
    "    allow: [web -> db tcp/80]\n"
    "  blue: {networks: {app: 10.0.0.0/24}, guests: {web: {node: node-a}}}\n",
    "a flow without a common network": _ONE + "tenants:\n"
    "  red:\n    networks: {app: 10.0.0.0/24, back: 10.0.1.0/24}\n"
    "    guests: {web: {network: app}, db: {network: back}}\n"
    "    allow: [web -> db tcp/80]\n",
    "IPv6 on the last guest only": _TWO + "tenants:\n"
    f"  red: {{{_PAIR % ('node-a', 'node-b')}}}\n"
    '  blue: {networks: {app: [10.0.0.0/24, "fd00:a::/64"]}, guests: {web: {node: node-b}, db: {node: '
    "node-b}}, "
    "allow: [web -> db udp/53]}\n",
}
SHIPPED = sorted(path.stem for path in TOPOLOGIES.glob("*.yaml"))


def lab_of(name: str) -> Testbed:
    """Return a topology by the name of its shape, or of its file."""
    if name in ODD:
        return resolve(load(f"version: 1\nname: odd\n{ODD[name]}", f"{name}.yaml", machine_memory=None).spec)
    return resolve(read(TOPOLOGIES / f"{name}.yaml").spec)
