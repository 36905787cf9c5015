"""A topology as a picture: DOT and Mermaid text. Pure, and equal for equal topologies.

Tenants are clusters that hold their guests and networks; a dashed line leads from a guest to its node, and an
arrow stands for an allowed flow. Identifiers carry their kind, because a node may be named like a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from testbed.model.topology import Guest, LabNetwork, Machine, Tenant, Testbed
from testbed.untrusted.text import line


def dot(lab: Testbed) -> str:
    """Return a topology in Graphviz's language."""
    lines = [f"digraph {_dot(lab.name)} {{", "  rankdir=LR; node [shape=box];"]
    lines += [
        f"  {_dot(f'plane {net.plane}')} [shape=ellipse, label={_dot(*_captions(net))}];"
        for net in lab.networks
    ]
    for machine in lab.machines:
        own = _dot(f"machine {machine.name}")
        lines.append(f"  {own} [style=bold, label={_dot(*_captions(machine))}];")
        lines += [
            f"  {own} -> {_dot(f'plane {nic.plane}')} [arrowhead=none, label={_dot(nic.address)}];"
            for nic in machine.nics
        ]
    for tenant in lab.tenants:
        lines += [f"  subgraph {_dot(f'cluster tenant {tenant.name}')} {{", f"    label={_dot(tenant.name)};"]
        lines += [
            f"    {_dot(f'network {net.label}')} [shape=ellipse, label={_dot(net.name, net.ranges)}];"
            for net in tenant.networks
        ]
        lines += [
            f"    {_dot(f'guest {guest.label}')} [label={_dot(*_captions(guest))}];"
            for guest in tenant.guests
        ]
        lines += [
            f"    {_dot(f'guest {guest}')} -> {_dot(f'network {net}')} [arrowhead=none, label={_dot(at)}];"
            for guest, net, at in _attachments(tenant)
        ]
        lines.append("  }")
    lines += [
        f"  {_dot(f'guest {guest.label}')} -> {_dot(f'machine {guest.node}')} [style=dashed, arrowhead=none];"
        for guest in lab.guests
    ]
    lines += [
        f"  {_dot(f'guest {one}')} -> {_dot(f'guest {other}')} [color=green, label={_dot(service)}];"
        for one, other, service in _flows(lab)
    ]
    return "\n".join((*lines, "}")) + "\n"


def mermaid(lab: Testbed) -> str:
    """Return a topology in Mermaid's language."""
    ids = _identifiers(lab)
    lines = ["flowchart LR"]
    lines += [f"  {ids[f'plane {net.plane}']}([{_mermaid(*_captions(net))}])" for net in lab.networks]
    for machine in lab.machines:
        own = ids[f"machine {machine.name}"]
        lines.append(f"  {own}[{_mermaid(*_captions(machine))}]")
        lines += [f"  {own} ---|{_mermaid(nic.address)}| {ids[f'plane {nic.plane}']}" for nic in machine.nics]
    for index, tenant in enumerate(lab.tenants):
        lines.append(f"  subgraph t{index}[{_mermaid(tenant.name)}]")
        lines += [
            f"    {ids[f'network {net.label}']}([{_mermaid(net.name, net.ranges)}])"
            for net in tenant.networks
        ]
        lines += [
            f"    {ids[f'guest {guest.label}']}[{_mermaid(*_captions(guest))}]" for guest in tenant.guests
        ]
        lines += [
            f"    {ids[f'guest {guest}']} ---|{_mermaid(at)}| {ids[f'network {net}']}"
            for guest, net, at in _attachments(tenant)
        ]
        lines.append("  end")
    lines += [f"  {ids[f'guest {guest.label}']} -.- {ids[f'machine {guest.node}']}" for guest in lab.guests]
    lines += [
        f"  {ids[f'guest {one}']} -->|{_mermaid(service)}| {ids[f'guest {other}']}"
        for one, other, service in _flows(lab)
    ]
    return "\n".join(lines) + "\n"


def _dot(*parts: object) -> str:
    """Return lines of a label, or an identifier, as DOT's quoted string."""
    return '"' + "\\n".join(re.sub(r'(["\\])', r"\\\1", line(part)) for part in parts) + '"'


def _mermaid(*parts: object) -> str:
    """Return lines of a label as Mermaid's quoted text, in which nothing but letters, digits and what
    addresses have is itself.
    """
    return (
        '"'
        + "<br/>".join(
            re.sub(r"[^\w .:/,-]", lambda found: f"#{ord(found[0])};", line(part)) for part in parts
        )
        + '"'
    )


def _captions(item: LabNetwork | Machine | Guest) -> tuple[object, object]:
    match item:
        case LabNetwork():
            return item.plane, item.network
        case Machine():
            return item.name, item.role
        case Guest():
            return item.name, f"on {item.node}"


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
