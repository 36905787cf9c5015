"""A topology as a picture: DOT and Mermaid text. Pure, and equal for equal topologies.

Tenants are clusters that hold their guests and networks; a dashed line leads from a guest to its node, and an
arrow stands for an allowed flow. Identifiers carry their kind, because a node may be named like a network.
"""

from __future__ import annotations

from collections.abc import Iterator

from testbed.model.testbed import Guest, LabNetwork, Machine, Tenant, Testbed


def dot(lab: Testbed) -> str:
    """Return a topology in Graphviz's language."""
    lines = [f'digraph "{lab.name}" {{', "  rankdir=LR; node [shape=box];"]
    lines += [f'  "plane {net.plane}" [shape=ellipse, label="{_captions(net, _BREAK)}"];' for net in lab.networks]
    for machine in lab.machines:
        lines.append(f'  "machine {machine.name}" [style=bold, label="{_captions(machine, _BREAK)}"];')
        lines += [f'  "machine {machine.name}" -> "plane {nic.plane}" [arrowhead=none, label="{nic.address}"];' for nic in machine.nics]
    for tenant in lab.tenants:
        lines += [f'  subgraph "cluster tenant {tenant.name}" {{', f'    label="{tenant.name}";']
        lines += [f'    "network {net.label}" [shape=ellipse, label="{net.name}{_BREAK}{net.ranges}"];' for net in tenant.networks]
        lines += [f'    "guest {guest.label}" [label="{_captions(guest, _BREAK)}"];' for guest in tenant.guests]
        lines += [f'    "guest {guest}" -> "network {net}" [arrowhead=none, label="{at}"];' for guest, net, at in _attachments(tenant)]
        lines.append("  }")
    lines += [f'  "guest {guest.label}" -> "machine {guest.node}" [style=dashed, arrowhead=none];' for guest in lab.guests]
    lines += [f'  "guest {source}" -> "guest {target}" [color=green, label="{service}"];' for source, target, service in _flows(lab)]
    return "\n".join((*lines, "}")) + "\n"


def mermaid(lab: Testbed) -> str:
    """Return a topology in Mermaid's language."""
    ids = _identifiers(lab)
    lines = ["flowchart LR"]
    lines += [f'  {ids[f"plane {net.plane}"]}(["{_captions(net, "<br/>")}"])' for net in lab.networks]
    for machine in lab.machines:
        own = ids[f"machine {machine.name}"]
        lines.append(f'  {own}["{_captions(machine, "<br/>")}"]')
        lines += [f'  {own} ---|"{nic.address}"| {ids[f"plane {nic.plane}"]}' for nic in machine.nics]
    for index, tenant in enumerate(lab.tenants):
        lines.append(f'  subgraph t{index}["{tenant.name}"]')
        lines += [f'    {ids[f"network {net.label}"]}(["{net.name}<br/>{net.ranges}"])' for net in tenant.networks]
        lines += [f'    {ids[f"guest {guest.label}"]}["{_captions(guest, "<br/>")}"]' for guest in tenant.guests]
        lines += [f'    {ids[f"guest {guest}"]} ---|"{at}"| {ids[f"network {net}"]}' for guest, net, at in _attachments(tenant)]
        lines.append("  end")
    lines += [f"  {ids[f'guest {guest.label}']} -.- {ids[f'machine {guest.node}']}" for guest in lab.guests]
    lines += [f'  {ids[f"guest {one}"]} -->|"{service}"| {ids[f"guest {other}"]}' for one, other, service in _flows(lab)]
    return "\n".join(lines) + "\n"


_BREAK = "\\n"


def _captions(item: LabNetwork | Machine | Guest, newline: str) -> str:
    match item:
        case LabNetwork():
            return f"{item.plane}{newline}{item.network}"
        case Machine():
            return f"{item.name}{newline}{item.role}"
        case Guest():
            return f"{item.name}{newline}on {item.node}"


def _identifiers(lab: Testbed) -> dict[str, str]:
    names = [f"plane {network.plane}" for network in lab.networks]
    names += [f"machine {machine.name}" for machine in lab.machines]
    names += [f"network {network.label}" for network in lab.switches()]
    names += [f"guest {guest.label}" for guest in lab.guests]
    return {name: f"n{index}" for index, name in enumerate(names)}


def _attachments(tenant: Tenant) -> Iterator[tuple[str, str, str]]:
    for guest in tenant.guests:
        for nic in guest.nics:
            yield guest.label, f"{tenant.name}/{nic.network}", nic.addresses


def _flows(lab: Testbed) -> Iterator[tuple[str, str, str]]:
    for tenant in lab.tenants:
        for flow in tenant.flows:
            yield f"{tenant.name}/{flow.source}", f"{tenant.name}/{flow.target}", flow.service
