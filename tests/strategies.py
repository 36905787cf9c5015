"""Random valid topologies."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True).filter(
    lambda name: name not in ("controller", "outer")
)


@st.composite
def topologies(draw: st.DrawFn) -> dict[str, Any]:
    """Return the data of a topology file without mistakes."""
    nodes = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    tenants = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        networks: dict[str, Any] = {
            f"n{number}": f"10.{number}.0.0/24" for number in range(draw(st.integers(1, 3)))
        }
        for number, label in enumerate(networks):
            if draw(st.booleans()):
                networks[label] = draw(st.permutations([networks[label], f"fd00:{number}::/64"]))
        guests = {}
        for guest in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
            volumes = {f"v{number}": "64 MiB" for number in range(draw(st.integers(0, 2)))}
            guests[guest] = {
                "node": draw(st.sampled_from(nodes)),
                "network": draw(st.lists(st.sampled_from(sorted(networks)), min_size=1, unique=True)),
                "volumes": volumes,
            }
        pairs = [(one, other) for one in guests for other in guests if one != other]
        services = st.one_of(
            st.just("icmp"), st.builds("{}/{}".format, st.sampled_from(["tcp", "udp"]), st.integers(1, 65535))
        )
        lines = (
            draw(st.lists(st.tuples(st.sampled_from(pairs), services), max_size=4, unique=True))
            if pairs
            else []
        )
        tenants[name] = {
            "networks": networks,
            "guests": guests,
            "allow": [f"{a} -> {b} {service}" for (a, b), service in lines],
        }
    return {
        "version": 1,
        "name": "lab",
        "nodes": {node: {"memory": "16 GiB"} for node in nodes},
        "tenants": tenants,
    }


@st.composite
def reordered(draw: st.DrawFn, data: dict[str, Any]) -> dict[str, Any]:
    """Return the same topology with nodes, tenants, networks and guests in another order."""

    def shuffled(mapping: dict[str, Any]) -> dict[str, Any]:
        return {name: mapping[name] for name in draw(st.permutations(list(mapping)))}

    tenants = {
        name: {**item, "networks": shuffled(item["networks"]), "guests": shuffled(item["guests"])}
        for name, item in data["tenants"].items()
    }
    return {**data, "nodes": shuffled(data["nodes"]), "tenants": shuffled(tenants)}


@st.composite
def crowded(draw: st.DrawFn) -> dict[str, Any]:
    """Return a topology in which hashes collide: networks with room for a handful of guests."""
    data = copy.deepcopy(draw(topologies()))
    for tenant in data["tenants"].values():
        for number, label in enumerate(tenant["networks"]):
            tenant["networks"][label] = f"10.{number}.0.0/28"
    data["infrastructure"] = {
        "management": "172.20.0.0/27",
        "fabric": "172.20.1.0/27",
        "storage": "172.20.2.0/27",
    }
    return data


@st.composite
def changes(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a topology, and one in which names have come, gone, and changed places."""
    before = draw(crowded())
    after = copy.deepcopy(before)
    for node in draw(st.lists(NAMES, max_size=3, unique=True)):
        after["nodes"] = {node: {"memory": "16 GiB"}, **after["nodes"]}
    for name, tenant in list(after["tenants"].items()):
        if len(after["tenants"]) > 1 and draw(st.integers(0, 4)) == 0:
            del after["tenants"][name]
            continue
        for guest in draw(st.lists(NAMES, max_size=3, unique=True)):
            item = {
                "node": draw(st.sampled_from(sorted(after["nodes"]))),
                "network": [sorted(tenant["networks"])[0]],
            }
            tenant["guests"] = {guest: tenant["guests"].get(guest, item), **tenant["guests"]}
        for guest in list(tenant["guests"]):
            if len(tenant["guests"]) > 1 and draw(st.integers(0, 3)) == 0:
                del tenant["guests"][guest]
        tenant["allow"] = [
            line for line in tenant["allow"] if {line.split()[0], line.split()[2]} <= set(tenant["guests"])
        ]
        tenant["networks"]["another"] = "10.9.0.0/28"
    return before, draw(reordered(after))
