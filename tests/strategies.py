"""Random valid topologies."""

from __future__ import annotations

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
