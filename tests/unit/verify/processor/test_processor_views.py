"""What is asked of libvirt, QEMU and a guest about processors, and answers that are none (CMP-04)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.drivers.hypervisor.connection import Domain
from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError
from testbed.verify.processor import observe, rules
from tests.shapes import lab_of

LAB = lab_of("one-node")
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded.json").read_text())
NODE: Any = SimpleNamespace(name="node")
CPUS = [{"qom-path": "/machine/0"}, {"qom-path": "/machine/1"}]


class _Hypervisor:
    """Has a domain for each guest; of two processors, some count events."""

    def __init__(self, *counting: str, cpus: object = CPUS) -> None:
        self.counting, self.cpus = counting, cpus
        self.names = [guest.domain for guest in LAB.guests_on("node")]

    def domains(self) -> list[Domain]:
        return [Domain(name, "-", "running", f"<domain>{name}</domain>") for name in self.names]

    def ask_monitor(self, _: str, command: str, arguments: dict[str, str]) -> object:
        if command == "query-cpus-fast":
            return self.cpus
        words = arguments["property"] == "feature-words"
        return RECORDED["words"] if words else arguments["path"] in self.counting


def _fleet(hypervisor: _Hypervisor | None = None, output: bytes = b"") -> Any:
    return SimpleNamespace(
        topology=LAB,
        lab=SimpleNamespace(nodes={"node": SimpleNamespace(hypervisor=hypervisor)}),
        evidence=SimpleNamespace(record=lambda *_: None),
        in_guest=lambda *_: output,
    )


@pytest.mark.parametrize(("counting", "told"), [((), False), (("/machine/1",), True)])
def test_every_processor_of_every_domain_is_read(counting: tuple[str, ...], told: bool) -> None:
    """Counters of the last processor count."""
    views = observe.domains(_fleet(_Hypervisor(*counting)), NODE)
    assert [view.name for view in views] == [guest.domain for guest in LAB.guests_on("node")]
    given = rules.of_qemu(RECORDED["words"])
    assert all(view.words == (given, given) and view.counting is told for view in views)
    assert views[0].xml == f"<domain>{views[0].name}</domain>"


def test_a_guest_whose_domain_is_not_there_was_not_read() -> None:
    hypervisor = _Hypervisor()
    lost = hypervisor.names.pop()
    with pytest.raises(InstrumentError, match=rf"the processors of {lost} cannot be read"):
        observe.domains(_fleet(hypervisor), NODE)


@pytest.mark.parametrize("cpus", [None, {}, [], [1], [CPUS[0], "x"]])
def test_a_domain_without_processors_is_not_judged(cpus: object) -> None:
    with pytest.raises(UnseenError, match="names no processor"):
        observe.domains(_fleet(_Hypervisor(cpus=cpus)), NODE)


def test_no_processor_is_left_out_silently() -> None:
    assert len(observe.domains(_fleet(_Hypervisor(cpus=CPUS[:1] * 64)), NODE)[0].words) == 64
    with pytest.raises(UnseenError, match="65 processors"):
        observe.domains(_fleet(_Hypervisor(cpus=CPUS[:1] * 65)), NODE)


def test_a_guest_shows_its_processors_or_is_not_judged() -> None:
    guest = LAB.guests[0]
    output = json.dumps(RECORDED["guest"]).encode()
    assert observe.guest(_fleet(output=output), guest) == rules.of_guest(RECORDED["guest"])
    for bad in (b"", b"x", b"[]", b"NaN"):
        with pytest.raises(UnseenError):
            observe.guest(_fleet(output=bad), guest)
