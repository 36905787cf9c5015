"""The oracle: what a topology allows between guests."""

from __future__ import annotations

from itertools import permutations

from testbed.model.reachability import Cell, ReachMatrix, endpoints, probed_ports, services
from testbed.model.resolve import resolve
from testbed.model.topology import Testbed
from testbed.topology_file.schema import Spec


def _lab() -> Testbed:
    tenant = {
        "networks": {"app": "10.0.0.0/24", "back": ["fd00:b::/64", "10.0.1.0/24"]},
        "guests": {"web": {"network": ["app", "back"]}, "db": {"network": "app"}, "log": {"network": "back"}},
        "allow": ["web -> db tcp/5432", "web -> db icmp", "web -> log udp/7", "db -> log tcp/22"],
    }
    spec = {"version": 1, "name": "lab", "nodes": {"node-a": {}}, "tenants": {"red": tenant, "blue": tenant}}
    return resolve(Spec.model_validate(spec))


def _cells(source: str, target: str) -> dict[str, Cell]:
    lab = _lab()
    ends = {end.label: end for end in endpoints(lab)}
    return {cell.service: cell for cell in ReachMatrix.of(lab).between(ends[source], ends[target])}


def test_every_ordered_pair_has_every_service_once() -> None:
    """No cell is missing, none is twice."""
    lab = _lab()
    cells = ReachMatrix.of(lab).cells
    ports = probed_ports(lab)
    wanted = sum(
        len(list(services(source, target, ports))) for source, target in permutations(endpoints(lab), 2)
    )
    assert len(cells) == len(set(cells)) == wanted


def test_a_flow_allows_its_port_one_way_only() -> None:
    """``tcp/5432`` says nothing of other ports, other protocols, or the way back."""
    forward, backward = _cells("red/web@app", "red/db@app"), _cells("red/db@app", "red/web@app")
    assert {name for name, cell in forward.items() if cell.allowed} == {"arp", "icmp", "tcp/5432"}
    assert {name for name, cell in backward.items() if cell.allowed} == {"arp"}


def test_a_flow_is_allowed_over_both_families_where_both_ends_have_both() -> None:
    """IPv6 follows the same line of the file; what is between link-local addresses never does."""
    forward, backward = _cells("red/web@back", "red/log@back"), _cells("red/log@back", "red/web@back")
    assert {name for name, cell in forward.items() if cell.allowed} == {"arp", "nd", "udp/7", "udp6/7"}
    assert {name for name, cell in backward.items() if cell.allowed} == {"arp", "nd"}
    assert {"nd-link", "icmp6-link", "udp6-link/7", "icmp6", "tcp6/22", "multicast6"} <= set(forward)


def test_without_ipv6_there_are_only_link_local_cells_of_it() -> None:
    """A network that has no IPv6 range is asked between link-local addresses alone, as ever."""
    names = set(_cells("red/web@app", "red/db@app"))
    assert {"nd-link", "icmp6-link", "tcp6-link/22"} <= names
    assert not {"nd", "icmp6", "tcp6/22", "multicast6"} & names


def test_an_undeclared_port_is_probed() -> None:
    """The probe port moves if a topology declares it."""
    assert probed_ports(_lab()) == {"tcp": (22, 5432, 7), "udp": (7, 8)}


def test_tenants_with_equal_names_and_addresses_do_not_meet() -> None:
    """Everything between tenants is denied."""
    cells = [cell for cell in ReachMatrix.of(_lab()).cells if cell.source.tenant != cell.target.tenant]
    assert cells
    assert not any(cell.allowed for cell in cells)


def test_a_flow_needs_a_common_network() -> None:
    """A declared flow between guests without a common network allows nothing."""
    assert not any(cell.allowed for cell in _cells("red/db@app", "red/log@back").values())
    assert not any(cell.allowed for cell in _cells("red/web@app", "red/web@back").values())


def test_allowed_and_denied_partition_the_table() -> None:
    """Every cell is in one of the two, and the table has a reason for each."""
    matrix = ReachMatrix.of(_lab())
    assert len(matrix.allowed()) + len(matrix.denied()) == len(matrix.cells) == len(matrix.as_table())
    assert all(row["reason"] for row in matrix.as_table())


def test_a_lab_without_a_node_has_no_flow_that_hangs_in_the_air() -> None:
    """What is left is a lab like every other: its matrix has the guests that are left, and the flows between
    them.
    """
    guests = {"web": {"node": "node-a"}, "db": {"node": "node-a"}, "log": {"node": "node-b"}}
    tenant = {
        "networks": {"app": "10.0.0.0/24"},
        "guests": guests,
        "allow": ["web -> db tcp/5432", "db -> log udp/7"],
    }
    whole = resolve(
        Spec.model_validate(
            {"version": 1, "name": "lab", "nodes": {"node-a": {}, "node-b": {}}, "tenants": {"red": tenant}}
        )
    )
    rest = whole.without("node-b")
    assert {guest.label for guest in rest.guests} == {"red/db", "red/web"}
    assert [flow.service for flow in rest.tenant("red").flows] == ["tcp/5432"]
    assert {cell.source.guest for cell in ReachMatrix.of(rest).cells} == {"red/db", "red/web"}
    assert whole.without("nowhere") == whole
