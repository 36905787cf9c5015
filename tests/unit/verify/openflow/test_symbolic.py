"""Where classes of packets go, in small pipelines.

A class always goes to every place that a packet of it goes to.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from testbed.errors import InstrumentError
from testbed.verify.openflow import flow_table, symbolic
from testbed.verify.openflow.header_space import FIELDS, WIDTHS, Cube, cube


def _rules(*texts: str) -> flow_table.Tables:
    return flow_table.read("\n".join(f" cookie=0x1, {text}" for text in texts))


def _exits(
    tables: flow_table.Tables, start: Cube, tracked: tuple[tuple[int, int], ...] = symbolic.NEW
) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for out in symbolic.SymbolicWalk(tables, tracked).start([start]):
        found.setdefault(out.port, set()).add(str(out.cube.put(FIELDS["ct_state"], 0, 0xFFFF, 0)))
    return found


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("ip", "dl_type=0x800"),
        ("icmp", "dl_type=0x800,nw_proto=1"),
        ("tcp", "dl_type=0x800,nw_proto=6"),
        ("udp", "dl_type=0x800,nw_proto=17"),
        ("sctp", "dl_type=0x800,nw_proto=132"),
        ("ipv6", "dl_type=0x86dd"),
        ("icmp6", "dl_type=0x86dd,nw_proto=58"),
        ("tcp6", "dl_type=0x86dd,nw_proto=6"),
        ("udp6", "dl_type=0x86dd,nw_proto=17"),
        ("sctp6", "dl_type=0x86dd,nw_proto=132"),
        ("arp", "dl_type=0x806"),
        ("rarp", "dl_type=0x8035"),
    ],
)
def test_a_protocol_stands_for_its_numbers(word: str, match: str) -> None:
    """ovs-fields(7)."""
    ((rule,),) = _rules(f"table=0, priority=1,{word} actions=drop").values()
    assert (str(rule.match), rule.exact) == (match, True)


@pytest.mark.parametrize("condition", ["in_port=tap1", "nw_frag=later", "tcp_flags=+syn", "dl_vlan=5"])
def test_a_condition_that_is_no_number_may_hold_for_every_packet(condition: str) -> None:
    """The rule takes packets, and those below it see all of them as well."""
    tables = _rules(
        f"table=0, priority=9,{condition} actions=output:2", "table=0, priority=8 actions=output:3"
    )
    assert _exits(tables, cube()) == {"2": {"anything"}, "3": {"anything"}}


def test_a_rule_that_takes_everything_hides_those_below_it() -> None:
    tables = _rules("table=0, priority=9,in_port=1 actions=output:2", "table=0, priority=8 actions=output:3")
    assert _exits(tables, cube(in_port=1)) == {"2": {"anything"}}
    assert _exits(tables, cube(in_port=4)) == {"3": {"anything"}}


def test_a_rule_that_takes_a_part_leaves_the_rest() -> None:
    tables = _rules(
        "table=0, priority=9,udp,tp_dst=53 actions=output:2", "table=0, priority=8 actions=output:3"
    )
    assert _exits(tables, cube(in_port=1)) == {
        "2": {"dl_type=0x800,nw_proto=17,tp_dst=53"},
        "3": {"anything"},
    }


def test_of_two_rules_of_one_priority_either_may_be_first() -> None:
    equals = ("table=0, priority=8 actions=output:2", "table=0, priority=8,in_port=1 actions=output:3")
    tables = _rules(*equals, "table=0, priority=7 actions=output:4")
    assert set(_exits(tables, cube(in_port=1))) == {"2", "3"}


def test_one_bit_tells_two_rules_apart_exactly() -> None:
    group = "01:00:00:00:00:00/01:00:00:00:00:00"
    tables = _rules(
        f"table=0, priority=9,dl_dst={group} actions=drop", "table=0, priority=8 actions=output:3"
    )
    assert _exits(tables, cube()) == {"3": {"dl_dst=00:00:00:00:00:00/0x10000000000"}}


def test_registers_are_views_of_one_another() -> None:
    tables = _rules(
        (
            "table=0, priority=1 "
            "actions=set_field:0x5/0xf->reg1,move:NXM_NX_REG1[0..3]->NXM_NX_XXREG0[124..127],resubmit(,1)"
        ),
        "table=1, priority=1,reg0=0x50000000 actions=output:2",
        "table=1, priority=1,xreg0=0x5000000000000005 actions=output:3",
    )
    assert set(_exits(tables, cube())) == {"2", "3"}


def test_what_a_table_changes_stays_changed_behind_it() -> None:
    tables = _rules(
        "table=0, priority=1 actions=resubmit(,5),resubmit(,6)",
        "table=5, priority=2,arp actions=set_field:0x1/0x1->reg10",
        "table=6, priority=2,reg10=0x1/0x1 actions=drop",
        "table=6, priority=1 actions=output:7",
    )
    assert _exits(tables, cube(dl_type=0x0806)) == {}
    assert _exits(tables, cube(dl_type=0x0800)) == {"7": {"dl_type=0x800"}}


def test_a_clone_changes_nothing_for_what_follows() -> None:
    tables = _rules(
        "table=0, priority=1 actions=clone(set_field:00:00:00:00:00:01->eth_dst,output:2),output:3"
    )
    assert _exits(tables, cube(dl_dst=9)) == {
        "2": {"dl_dst=00:00:00:00:00:01"},
        "3": {"dl_dst=00:00:00:00:00:09"},
    }


def test_a_register_can_name_the_port() -> None:
    tables = _rules("table=0, priority=1 actions=load:0x7->NXM_NX_REG15[],output:NXM_NX_REG15[]")
    assert set(_exits(tables, cube())) == {"7"}


def test_what_was_put_aside_comes_back() -> None:
    tables = _rules(
        (
            "table=0, priority=1 "
            "actions=push:NXM_OF_IN_PORT[],set_field:0->in_port,resubmit(,1),pop:NXM_OF_IN_PORT[],resubmit(,2)"
        ),
        "table=1, priority=1,in_port=0 actions=output:4",
        "table=2, priority=1,in_port=9 actions=output:5",
    )
    assert set(_exits(tables, cube(in_port=9))) == {"4", "5"}


def test_connection_tracking_says_what_it_may() -> None:
    tables = _rules(
        "table=0, priority=1,ip actions=ct(table=1,zone=NXM_NX_REG13[0..15])",
        "table=1, priority=2,ct_state=+est+trk actions=output:2",
        "table=1, priority=1,ct_state=+new+trk actions=output:3",
    )
    assert set(_exits(tables, cube(dl_type=0x0800))) == {"3"}
    assert set(_exits(tables, cube(dl_type=0x0800), symbolic.ANY)) == {"2", "3"}


def test_a_conjunction_takes_no_more_than_its_parts_allow() -> None:
    tables = _rules(
        "table=0, priority=5,udp,nw_dst=10.0.0.1 actions=conjunction(7,1/2)",
        "table=0, priority=5,udp,tp_dst=67 actions=conjunction(7,2/2)",
        "table=0, priority=5,conj_id=7,udp actions=output:2",
        "table=0, priority=1 actions=output:3",
    )
    assert _exits(tables, cube(dl_type=0x0800, nw_proto=17)) == {
        "2": {"dl_type=0x800,nw_proto=17"},
        "3": {"dl_type=0x800,nw_proto=17"},
    }


def test_table_0_is_a_table_that_a_packet_can_go_back_to() -> None:
    tables = _rules(
        "table=0, priority=9,in_port=7 actions=output:2",
        "table=0, priority=8 actions=set_field:7->in_port,resubmit(,1)",
        "table=1, priority=1 actions=resubmit(,0)",
    )
    assert set(_exits(tables, cube(in_port=1))) == {"2"}


@pytest.mark.parametrize("action", ["resubmit(,0)", "push:NXM_NX_REG0[],resubmit(,0)"])
def test_a_circle_is_told(action: str) -> None:
    with pytest.raises(InstrumentError, match="without an end"):
        _exits(
            _rules(
                "table=0, priority=1 actions=resubmit(,1)", f"table=1, priority=1 actions=output:2,{action}"
            ),
            cube(),
        )


@pytest.mark.parametrize("action", ["group:4", "learn(table=3)", "write_actions(output:4)"])
def test_what_is_not_understood_is_told(action: str) -> None:
    with pytest.raises(InstrumentError, match="does not know"):
        _exits(_rules(f"table=0, priority=1 actions={action}"), cube())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NXST_FLOW reply (xid=0x4):",
        " cookie=0x0, table=0, priority=1,ip,arp actions=drop",
        " cookie=0x0, table=0, priority=1,dl_src=zz actions=drop",
    ],
)
def test_what_are_no_rules_is_told(text: str) -> None:
    with pytest.raises(InstrumentError):
        flow_table.read(text)


def test_a_condition_that_is_not_followed_narrows_nothing() -> None:
    tables = _rules(
        "table=0, priority=2,tcp,tcp_flags=+syn actions=output:2", "table=0, priority=1 actions=output:3"
    )
    assert set(_exits(tables, cube(dl_type=0x0800, nw_proto=6))) == {"2", "3"}


# Pipelines of a few rules over three small parts of a packet, as text.
_PARTS = {"nw_proto": 255, "nw_ttl": 3, "icmp_type": 3}
_conditions = some.dictionaries(
    some.sampled_from([*_PARTS, "reg0", "ct_state"]), some.integers(0, 3), max_size=3
)
_ACTIONS = (
    "drop",
    "output:1",
    "output:2",
    "set_field:1->reg0",
    "set_field:0x2/0x2->reg0",
    "dec_ttl",
    "ct_clear",
    "move:NXM_NX_REG0[0..1]->NXM_NX_REG1[0..1]",
    "move:NXM_NX_REG1[0..1]->NXM_NX_REG0[0..1]",
    "push:NXM_NX_REG0[]",
    "pop:NXM_NX_REG0[]",
)
_ONWARDS = ("resubmit(,{})", "ct(table={},zone=1)", "clone(set_field:3->reg0,resubmit(,{}))")


@some.composite
def _pipelines(draw: some.DrawFn) -> flow_table.Tables:
    texts = []
    for table in range(3):
        onwards = [action.format(later) for action in _ONWARDS for later in range(table + 1, 3)]
        actions = some.sampled_from([*_ACTIONS, *onwards])
        for priority in range(draw(some.integers(1, 4))):
            told = [
                f"{name}={'+trk' if name == 'ct_state' else value}"
                for name, value in draw(_conditions).items()
            ]
            taken = ",".join(draw(some.lists(actions, min_size=1, max_size=3)))
            texts.append(
                f"table={table}, priority={priority}{''.join(',' + item for item in told)} actions={taken}"
            )
    return _rules(*texts)


@settings(max_examples=300)
@given(
    tables=_pipelines(),
    packet=some.fixed_dictionaries({name: some.integers(0, 3) for name in _PARTS}),
    open_=some.sets(some.sampled_from(sorted(_PARTS))),
)
def test_a_class_goes_wherever_one_of_its_packets_goes(
    tables: flow_table.Tables, packet: dict[str, int], open_: set[str]
) -> None:
    one, wide = (
        cube(in_port=1, **packet),
        cube(in_port=1, **{name: value for name, value in packet.items() if name not in open_}),
    )
    single, several = (symbolic.SymbolicWalk(tables, symbolic.NEW).start([start]) for start in (one, wide))
    for out in single:
        assert any(out.port == other.port and out.cube.within(other.cube) for other in several), (
            out,
            several,
        )


_cubes = some.builds(
    lambda value, known: Cube(value & known, known),
    some.integers(0, (1 << 12) - 1), some.integers(0, (1 << 12) - 1),
)  # fmt: skip


@given(_cubes, _cubes, some.integers(0, (1 << 12) - 1))
def test_cubes_are_sets_of_packets(one: Cube, other: Cube, packet: int) -> None:
    def holds(item: Cube | None) -> bool:
        return item is not None and not (packet ^ item.value) & item.known

    if holds(one) and holds(other):
        assert one.meets(other)
        assert holds(one.narrowed(other))
    if one.within(other) and holds(one):
        assert holds(other)
    if holds(one) and not holds(other):
        assert holds(one.outside(other))
    if holds(one.outside(other)):
        assert holds(one)


def test_every_field_has_a_place_of_its_own() -> None:
    whole = [FIELDS[name].ones for name in WIDTHS]
    assert sum(whole) == (1 << sum(WIDTHS.values())) - 1
