"""What OpenFlow shows of a switch, in a form that two switches can be compared in."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.payload.flows import computed

TABLES = """\
OFPST_TABLE reply (OF1.1) (xid=0x2):
  table 0:
    active=4, lookup=10758, matched=10758
    config=controller
    max_entries=1000000

  table 1:
    active=0, lookup=0, matched=0
    (same features)

  table 2:
    config=continue

  table 3:
    config=controller

  tables 4...6: ditto
"""
PORTS = """\
OFPST_PORT_DESC reply (OF1.5) (xid=0x2):
 1(tapa): addr:fe:13:cb:b2:38:dc
     config:     NO_FWD
     state:      LIVE
 LOCAL(br-int): addr:fe:13:cb:b2:38:dd
     config:     PORT_DOWN
     state:      LINK_DOWN
"""
FLOWS = """\
OFPST_FLOW reply (OF1.5) (xid=0x2):
 cookie=0x1, table=0, in_port=1 actions=set_field:{port}/0xffff->reg13,set_field:{nat}->reg11,resubmit(,8)
 cookie=0x2, table=8, metadata=0x5 actions=set_field:0/0xffff0000->reg13,meter:{meter}
"""
METERS = "OFPST_METER_CONFIG reply (OF1.5) (xid=0x2):\n{}"
LIMIT = "meter={} kbps burst stats bands=\ntype=drop rate={} burst_size=640\n"


class Switch:
    """Answers as the tools of a switch whose numbers of zones and meters are given."""

    def __init__(self, port: int, nat: int, meters: dict[int, int], **texts: str) -> None:
        self._texts = {
            "ct-zone-list": f"web {port}\nred_dnat {nat}\n",
            "dump-meters": METERS.format("".join(LIMIT.format(*meter) for meter in meters.items())),
            "dump-flows": FLOWS.format(port=hex(port), nat=hex(nat), meter=min(meters)),
            "dump-tables": TABLES,
            "dump-ports-desc": PORTS,
            "get-frags": "normal\n",
        } | texts

    def ran(self, command: list[str]) -> str:
        return next(text for word, text in self._texts.items() if word in command)


def dumped(switch: Switch) -> set[str]:
    return computed._dumped(switch, "switch", "control")  # type: ignore[arg-type]


def test_numbers_that_a_controller_draws_make_no_difference() -> None:
    one, other = Switch(1, 2, {1: 500, 2: 700}), Switch(7, 3, {4: 500, 3: 700})
    other._texts["dump-flows"] = FLOWS.format(port="0x7", nat="0x3", meter=4)
    found = dumped(one)
    assert found == dumped(other)
    assert "port tapa NO_FWD" in found
    assert "fragments normal" in found
    assert "table 2 without a match: continue" in found
    assert {f"table {number} without a match: controller" for number in (0, 1, 3, 4, 5, 6)} <= found
    assert not any("br-int" in line for line in found)  # a switch without ports in the kernel has it up


@pytest.mark.parametrize(
    "texts",
    [
        {"get-frags": "drop\n"},
        {"dump-tables": TABLES.replace("continue", "controller")},
        {"dump-ports-desc": PORTS.replace("NO_FWD", "0")},
        {"ct-zone-list": "web 1\nred_dnat 1\n"},  # two zones have one number
        {"dump-meters": METERS.format(LIMIT.format(1, 500) + LIMIT.format(2, 500))},
        {"dump-meters": METERS.format(LIMIT.format(1, 501))},
    ],
)
def test_what_differs_is_a_difference(texts: dict[str, Any]) -> None:
    assert dumped(Switch(1, 2, {1: 500}, **texts)) != dumped(Switch(1, 2, {1: 500}))
