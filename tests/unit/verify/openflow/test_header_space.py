"""Classes of packets: fields and their views, and which class holds which."""

from __future__ import annotations

import pytest

from testbed.verify.openflow.header_space import FIELDS, WIDTHS, Cube, cube

SSH = cube(nw_proto=6, tp_dst=22)
TCP = cube(nw_proto=6)


def test_fields_share_no_bit() -> None:
    masks = [FIELDS[name].ones for name in WIDTHS]
    assert [mask.bit_count() for mask in masks] == list(WIDTHS.values())
    assert sum(masks) == (1 << sum(WIDTHS.values())) - 1


@pytest.mark.parametrize("number", range(4))
def test_registers_are_views_of_the_extended_ones(number: int) -> None:
    """ovs-fields(7): the first of several is the most significant part."""
    first = 4 * number
    found = cube(**{f"reg{first + place}": 0xA0 + place for place in range(4)})
    assert found.number(f"xreg{2 * number}") == 0xA0 << 32 | 0xA1
    assert found.number(f"xreg{2 * number + 1}") == 0xA2 << 32 | 0xA3
    assert found.number(f"xxreg{number}") == 0xA0 << 96 | 0xA1 << 64 | 0xA2 << 32 | 0xA3
    halves = cube(**{f"xreg{2 * number}": 0xA0 << 32 | 0xA1, f"xreg{2 * number + 1}": 0xA2 << 32 | 0xA3})
    assert halves == found


def test_a_class_is_within_a_larger_one_only() -> None:
    assert SSH.within(TCP)
    assert SSH.within(SSH)
    assert not TCP.within(SSH)
    assert not cube(nw_proto=17, tp_dst=22).within(TCP)
    assert not cube(nw_proto=17, tp_dst=22).meets(TCP)
    assert TCP.meets(cube(tp_dst=22))
    assert TCP.narrowed(cube(tp_dst=22)) == SSH


def test_what_is_outside_is_exact_for_one_bit_and_never_too_small() -> None:
    assert SSH.outside(TCP) is None
    assert SSH.outside(cube(nw_proto=17)) == SSH
    assert TCP.outside(SSH) == TCP  # sixteen bits tell them apart: no single class holds just the rest
    fragment = FIELDS["ct_state"]
    new = Cube().put(fragment, 1, 1)
    assert TCP.outside(new) == TCP.put(fragment, 0, 1)
    assert TCP.outside(Cube().put(fragment, 0, 1)) == TCP.put(fragment, 1, 1)


def test_what_was_written_under_a_mask_leaves_the_other_bits() -> None:
    found = cube(tp_dst=0x1234).put(FIELDS["tp_dst"], 0xFF56, 0xFF)
    assert found.number("tp_dst") == 0x1256
    half = found.put(FIELDS["tp_dst"], 0, 0xFF, 0x0F)
    assert half.get(FIELDS["tp_dst"]) == (0x1200, 0xFF0F)
    assert half.number("tp_dst") is None


def test_what_was_forgotten_may_be_anything() -> None:
    assert SSH.forget(FIELDS["tp_dst"]) == TCP
    assert SSH.forget(FIELDS["tp_dst"], FIELDS["nw_proto"]) == Cube()


@pytest.mark.parametrize(("packet", "text"), [
    (Cube(), "anything"),
    (cube(reg0=1, in_port=3), "anything"),
    (cube(dl_src=0x0A0000000002, dl_type=0x86DD), "dl_src=0a:00:00:00:00:02,dl_type=0x86dd"),
    (cube(nw_src=0x0A000002, ipv6_dst=0xFD << 120 | 2, arp_tpa=0x0A000003),
     "nw_src=10.0.0.2,ipv6_dst=fd00::2,arp_tpa=10.0.0.3"),
    (SSH, "nw_proto=6,tp_dst=22"),
    (Cube().put(FIELDS["nw_dst"], 0x0A000000, 0xFF000000), "nw_dst=0xa000000/0xff000000"),
])  # fmt: skip
def test_a_class_in_words(packet: Cube, text: str) -> None:
    assert str(packet) == text


def test_people_read_addresses_as_addresses() -> None:
    assert str(cube(nw_src=0x0A000001)) == "nw_src=10.0.0.1"
    assert str(cube(ipv6_dst=1)) == "ipv6_dst=::1"
    assert str(cube(dl_src=0x0A000000000F)) == "dl_src=0a:00:00:00:00:0f"


def test_extended_registers_have_128_bits() -> None:
    """ovs-fields(7)."""
    assert [WIDTHS[f"xxreg{number}"] for number in range(4)] == [128] * 4
