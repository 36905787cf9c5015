"""Checks of processors, workers' networks and accounts: verdicts, breaches (CMP-04, PRC-05, BND-02)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from checks import test_processors, test_root_partition, test_worker_network
from checks.support.device_breaches import booted_breach
from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.plan.resources import Key, Kind
from testbed.verify.attackers import accounts, worker_network
from testbed.verify.check import ATTRIBUTE, Breach
from testbed.verify.processor import observe, rules
from tests.shapes import lab_of

LAB = lab_of("one-node")
GUESTS = LAB.guests_on("node")
XML = guest_xml(LAB, GUESTS[0], {})
RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "verify/processor/recorded.json").read_text()
)
GIVEN = rules.of_qemu(RECORDED["words"])
ENABLED = {**RECORDED["guest"], "attempts": {**RECORDED["guest"]["attempts"], "enable SVM": "done"}}
NESTED = {**GIVEN, ("80000001.0", rules.ECX): GIVEN["80000001.0", rules.ECX] | 4}
FLEET: Any = SimpleNamespace(topology=LAB)
NODE: Any = SimpleNamespace(name="node")


def _processors(monkeypatch: pytest.MonkeyPatch, answer: object = RECORDED["guest"], **changed: Any) -> None:
    """Run the check on a node whose last guest has another processor in QEMU or in itself."""
    views = [observe.DomainView(guest.domain, XML, (GIVEN,), counting=False) for guest in GUESTS]
    last = {"name": GUESTS[-1].domain, "xml": XML, "words": (GIVEN,), "counting": False, **changed}
    monkeypatch.setattr(observe, "domains", lambda *_: [*views[:-1], observe.DomainView(**last)])
    monkeypatch.setattr(observe, "guest", lambda *_: rules.of_guest(answer))
    test_processors.test_processors_are_declared(FLEET, NODE)


def test_declared_processors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    _processors(monkeypatch)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"xml": XML.replace('name="vmx"', 'name="x"')}, "the feature vmx unset"),
        ({"words": (NESTED,)}, "QEMU says it has SVM"),
        ({"counting": True}, "QEMU gives it performance counters"),
        ({"answer": ENABLED}, "it can enable SVM"),
    ],
)
def test_another_processor_fails(monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        _processors(monkeypatch, **changed)


def test_a_processor_that_is_not_read_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InstrumentError):
        _processors(monkeypatch, answer=None)
    with pytest.raises(ValueError, match="zip"):  # the guest shows one processor less than QEMU
        _processors(monkeypatch, words=(GIVEN, GIVEN))


@pytest.mark.parametrize(
    ("check", "module"),
    [
        (test_worker_network.test_workers_have_no_network, worker_network),
        (test_root_partition.test_accounts_do_not_reach_guests, accounts),
    ],
)
def test_what_is_reached_fails(
    monkeypatch: pytest.MonkeyPatch, check: Callable[..., None], module: object
) -> None:
    monkeypatch.setattr(module, "reached", lambda *_: [])
    check(FLEET, NODE)
    monkeypatch.setattr(module, "reached", lambda *_: ["x can y"])
    with pytest.raises(AssertionError, match="x can y"):
        check(FLEET, NODE)

    def blind(*_: object) -> list[str]:
        raise UnseenError("nothing was tried")

    monkeypatch.setattr(module, "reached", blind)
    with pytest.raises(InstrumentError):
        check(FLEET, NODE)


class _World:
    """A node that boots guests, and shows the domain of the one that runs."""

    def __init__(self) -> None:
        self.running, self.boots = XML, 0
        hypervisor = SimpleNamespace(runs=lambda _: bool(self.running), live_xml=lambda _: self.running)
        node = SimpleNamespace(name="node", hypervisor=hypervisor, boot=self._boot)
        resource = SimpleNamespace(properties={})
        lab = SimpleNamespace(desired={Key("node", Kind.GUEST, GUESTS[0].label): resource})
        self.context: Any = SimpleNamespace(topology=LAB, node=node, lab=lab, guest=GUESTS[0])

    def _boot(self, _: object, xml: str) -> None:
        self.running, self.boots = xml, self.boots + 1


def _breach(name: str) -> Breach:
    (found,) = (
        breach
        for breach in getattr(test_processors.test_processors_are_declared, ATTRIBUTE).breaches
        if breach.name == name
    )
    return found


def test_a_guest_that_can_run_guests_is_booted_and_booted_again() -> None:
    world, breach = _World(), _breach("a guest can run guests")
    breach.open(world.context)
    assert breach.in_force(world.context)
    assert rules.undeclared(XML, world.running)
    breach.close(world.context)
    assert not breach.in_force(world.context)
    assert rules.undeclared(XML, world.running) == []
    breach.close(world.context)
    assert world.boots == 2


def test_a_guest_that_does_not_run_is_booted_when_its_breach_is_closed() -> None:
    world = _World()
    world.running = ""
    booted_breach("x", lambda *_: None, lambda _: True).close(world.context)
    assert world.boots == 1


def test_counters_are_given_by_one_word() -> None:
    root = ET.fromstring(XML)
    test_processors._counting(root)
    assert rules.undeclared(XML, ET.tostring(root, encoding="unicode")) == [
        "libvirt's XML has performance counters on, and not off"
    ]
