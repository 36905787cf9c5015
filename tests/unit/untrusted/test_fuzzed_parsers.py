"""No octets of a guest, a node or a file get more out of a parser than its own errors, within seconds."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from testbed.errors import InstrumentError, ProvisioningError
from testbed.plan.libvirt_xml.machine import read_mark
from testbed.verify.openflow import flow_table
from tests.fuzz import seeds
from tests.fuzz.crash import crash
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import LAB, TARGETS

_BRIEF = settings(
    max_examples=60,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[*HealthCheck],
)


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_what_is_well_formed(name: str) -> None:
    """A parser that refuses everything would stand every test."""
    for data in TARGETS[name].seeds:
        TARGETS[name].parse(data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_octets_get_no_other_errors_out_of_a_parser(name: str) -> None:
    @seed(1)
    @_BRIEF
    @given(mutated(TARGETS[name].seeds))
    def one(data: bytes) -> None:
        assert not crash(TARGETS[name], data), data

    one()


_RECORDER = {"alive": True, "overflowed": False, "dropped": 0, "down": [], "self_test": True}
_SET = {"set": {"name": "refused", "size": 9}}
_BOMB = '<!DOCTYPE a [<!ENTITY a0 "aaaaaaaaaa">' + "".join(
    f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9)
)
# Each of these broke off with an error of Python, or did not end.
FOUND = {
    "ledger: a number as a rule": ("ledger", json.dumps({"nftables": [_SET, 7]}).encode()),
    "ledger: a text as a match": (
        "ledger",
        json.dumps(
            {
                "nftables": [
                    _SET,
                    {"rule": {"expr": [{"match": "x"}, {"counter": {"packets": 1}}, {"accept": 0}]}},
                ]
            }
        ).encode(),
    ),
    "ledger: an endless number": ("ledger", b'{"nftables": [{"set": {"name": "refused", "size": 1e999}}]}'),
    "ledger: deep": ("ledger", b'{"nftables": ' + b"[" * 100_000),
    "guest: a list as a token": (
        "guest",
        json.dumps({**_RECORDER, "records": [{"label": "app", "token": ["x"]}]}).encode(),
    ),
    "guest: a tap of no guest": ("guest", json.dumps({**_RECORDER, "records": [{"label": "tap0"}]}).encode()),
    "domain: no XML": ("domain", b"<domain><name>x</domain>"),
    "domain: a bomb": ("domain", f"{_BOMB}]><domain><title>&a9;</title></domain>".encode()),
    "openflow: a tab": ("openflow", b" cookie=0x1, table=0, priority=1 actions=resu\tbmit(,8)"),
    "openflow: an unknown state": ("openflow", b" table=0, priority=1,ct_state=+i actions=drop"),
    "openflow: a wide range of bits": (
        "openflow",
        b" table=0, priority=1 actions=move:NXM_NX_REG1[0..99999999999]->NXM_NX_REG2[]",
    ),
    "openflow: clone without actions": ("openflow", b" table=0, priority=1 actions=clone"),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_once_broke_a_parser_is_an_error_of_ours(case: str) -> None:
    name, data = FOUND[case]
    assert not crash(TARGETS[name], data)
    if name not in ("guest",):  # there, one conclusion is refused, and the others are drawn
        with pytest.raises(TARGETS[name].errors):
            TARGETS[name].parse(data)


def test_connection_tracking_without_arguments_leads_nowhere() -> None:
    TARGETS["openflow"].parse(b" table=0, priority=1 actions=ct")


def test_a_rule_with_bits_that_no_field_has_is_refused() -> None:
    with pytest.raises(InstrumentError, match="a rule cannot be read"):
        flow_table.field("NXM_NX_REG1[]", 0, 32)
    assert flow_table.field("NXM_NX_REG1[]", 0, 31) == flow_table.field("reg1")


def test_a_domain_that_is_no_xml_is_named_with_a_remedy() -> None:
    with pytest.raises(ProvisioningError, match="cannot be read") as caught:
        read_mark("<domain")
    assert "rebuild the node" in caught.value.remedy
    mark = read_mark(seeds.domains(LAB)[0].decode())
    assert mark is not None
    assert mark[0] == LAB.name
