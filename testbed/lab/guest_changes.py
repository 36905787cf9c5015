"""Carries out the difference between two topologies of a lab in which guests of one node differ."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.engine.apply import perform
from testbed.engine.timing import Trace
from testbed.lab.session import Lab
from testbed.model.topology import Topology
from testbed.plan.diff import diff
from testbed.plan.resources import Key, Resource, desired


def change_guests(lab: Lab, node: str, old: Topology, new: Topology) -> None:
    """Create and remove guests of one node, and their ports, by the actions of ``up``.

    Nothing is observed: each resource is taken to be as the old topology says.

    Args:
        old: the lab's topology, or one that has been carried out in its place.
        new: the same with other guests on the node.

    Raises:
        ProvisioningError: an action fails.

    """
    known, wanted = (desired(topology, lab.inputs.plan_inputs) for topology in (old, new))
    controller, root = lab.central.in_topology(new), lab.nodes[node].in_topology(new)
    try:
        for place in (controller, root):
            found = {key: resource.properties for key, resource in _at(place.name, known).items()}
            perform(diff(_at(place.name, wanted), found), place, lambda _: None, Trace(), "")
    finally:
        controller.close_northbound()
        root.close_hypervisor()


def _at(place: str, resources: Mapping[Key, Resource]) -> dict[Key, Resource]:
    return {key: resource for key, resource in resources.items() if key.place == place}
