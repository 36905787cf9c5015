"""Uses of declared flows: the positive controls of everything that must not arrive."""

from __future__ import annotations

import pytest

from testbed.verify.observation.declared_flows import ends, uses
from tests.shapes import lab_of


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ("two-tenants", ["red/web -> red/db tcp/5432", "blue/web -> blue/db tcp/5432"]),
        (
            "udp-and-icmp",
            [
                "red/web -> red/db udp/514",
                "red/web -> red/db udp/514 over IPv6",
                "blue/web -> blue/db icmp",
            ],
        ),
        ("no flow", []),
    ],
)
def test_every_flow_is_used_over_each_family_that_both_ends_have(shape: str, told: list[str]) -> None:
    found = uses(lab_of(shape))
    assert [str(use) for use in found] == told
    assert len({use.mark for use in found}) == len(found)


def test_a_use_asks_the_service_from_the_interface_that_may_reach_it() -> None:
    """The flow leads over the second network of its source."""
    lab = lab_of("a flow on a second network")
    (use,) = uses(lab)
    probe = use.probe("before")
    target = next(guest for guest in lab.guests if guest.label == "red/db").nics[0]
    source = next(guest for guest in lab.guests if guest.label == "red/web").nics[1]
    assert (probe.sender.mac, probe.mark) == (source.mac, f"{use.mark}before")
    wanted = {"kind": "tcp-connect", "address": str(source.address), "ip": str(target.address), "port": 80}
    assert wanted.items() <= probe.fields.items()


def test_ends_of_flows_are_pairs_in_both_directions() -> None:
    found = [(source.guest, target.guest) for source, target in ends(lab_of("two-tenants"))]
    assert found == [
        ("red/web", "red/db"),
        ("red/db", "red/web"),
        ("blue/web", "blue/db"),
        ("blue/db", "blue/web"),
    ]
