"""A topology as a picture: DOT and Mermaid text. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.model.testbed import Guest, Testbed


def dot(lab: Testbed) -> str:
    """Return a topology in Graphviz's language."""
    lines = [f'digraph "{lab.name}" {{', "  rankdir=LR; node [shape=box];"]
    lines += [f'  "{network.plane}" [shape=ellipse, label="{network.plane}\\n{network.network}"];' for network in lab.networks]
    for machine in lab.machines:
        lines.append(f'  subgraph "cluster_{machine.name}" {{ label="{machine.name}"; "{machine.name}" [label="{machine.role}"];')
        lines += [f'    "{guest.label}" [label="{_caption(guest, chr(92) + "n")}"];' for guest in lab.guests_on(machine.name)]
        lines.append("  }")
        lines += [f'  "{machine.name}" -> "{nic.plane}" [arrowhead=none, label="{nic.address}"];' for nic in machine.nics]
    lines += [f'  "{source}" -> "{target}" [color=green, label="{service}"];' for source, target, service in _flows(lab)]
    return "\n".join((*lines, "}")) + "\n"


def mermaid(lab: Testbed) -> str:
    """Return a topology in Mermaid's language."""
    names = [*(machine.name for machine in lab.machines), *(guest.label for guest in lab.guests), *(n.plane for n in lab.networks)]
    ids = {str(name): f"n{index}" for index, name in enumerate(names)}
    lines = ["flowchart LR"]
    lines += [f'  {ids[network.plane]}(["{network.plane}<br/>{network.network}"])' for network in lab.networks]
    for machine in lab.machines:
        lines += [f'  subgraph s{ids[machine.name]}["{machine.name}"]', f'    {ids[machine.name]}["{machine.role}"]']
        lines += [f'    {ids[guest.label]}["{_caption(guest, "<br/>")}"]' for guest in lab.guests_on(machine.name)]
        lines.append("  end")
        lines += [f"  {ids[machine.name]} --- {ids[nic.plane]}" for nic in machine.nics]
    lines += [f'  {ids[source]} -->|"{service}"| {ids[target]}' for source, target, service in _flows(lab)]
    return "\n".join(lines) + "\n"


def _caption(guest: Guest, newline: str) -> str:
    return newline.join((guest.label, *(f"{nic.network} {nic.address}" for nic in guest.nics)))


def _flows(lab: Testbed) -> Iterator[tuple[str, str, str]]:
    for tenant in lab.tenants:
        for flow in tenant.flows:
            yield f"{tenant.name}/{flow.source}", f"{tenant.name}/{flow.target}", flow.service
