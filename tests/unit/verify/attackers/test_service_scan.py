"""What a scan of services concludes from its answers, and what it asks again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.model.exposure import EndpointOwner, contacts
from testbed.verify.attackers import service_scan
from testbed.verify.attackers.scan_result import ScanResult
from tests.shapes import lab_of

CELLS = contacts(lab_of("two-tenants"))
OUTER = [cell for cell in CELLS if cell.source.stand is EndpointOwner.OUTER]


def test_an_administrator_must_get_in_and_others_need_not() -> None:
    others = [cell for cell in CELLS if cell.source.stand is not EndpointOwner.OUTER][:2]
    cells, states = [OUTER[0], *others], ["open", "silent", "open"]
    service_scan._require_open(cells, states, "before")
    with pytest.raises(InstrumentError, match="does not get what is allowed, before the questions"):
        service_scan._require_open(cells, ["silent", "open", "open"], "before")


def test_sockets_of_the_loopback_are_no_services() -> None:
    lines = ["LISTEN 0 9 0.0.0.0:22 -", "LISTEN 0 9 127.0.0.1:81 -", "LISTEN 0 9 [::1]:82 -"]
    text = "\n".join(f"tcp {line}" for line in lines)
    assert service_scan._sockets("node", text) == {("tcp", 22)}


@pytest.mark.parametrize(("protocol", "header"), [("tcp6", "06"), ("udp6", "11")])
def test_an_answer_comes_from_the_port_that_was_asked(protocol: str, header: str) -> None:
    cell = next(cell for cell in CELLS if cell.protocol == protocol and cell.port)
    packet, answer = service_scan._FRAMES[protocol](cell)
    assert f"{header}.." in answer
    assert f"{cell.port:04x}" in answer
    assert packet.lastlayer().name
    assert cell.port in (packet.getfieldval("dport"), packet["IPv6"].payload.dport)


def test_a_result_tells_the_state_and_what_made_it_unsure() -> None:
    cell = OUTER[0]
    assert str(ScanResult(cell, "silent", True, False)) == f"{cell}: silent"
    assert str(ScanResult(cell, "open", False, True, "-")) == f"{cell}: open, let pass, not refused, but -"


def test_a_question_that_could_not_be_asked_is_no_answer() -> None:
    cells = [cell for cell in CELLS if cell.source.mac and cell.source == OUTER[0].source] or OUTER
    cells = [*cells, *cells][:6]
    fleet: Any = SimpleNamespace(evidence=SimpleNamespace(record=lambda *_: None))
    states = ["error: down"] * 5 + ["open"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_scan, "_with_mac", lambda _, source: source)
        patch.setattr(service_scan, "question", lambda _, mark: {"id": mark})
        patch.setattr(
            service_scan,
            "_ask",
            lambda _, script, __: [(line["id"], states[int(line["id"][1:])]) for line in script],
        )
        at: Any = {service_scan._asker(cell.source): None for cell in cells}
        with pytest.raises(InstrumentError, match="5 of 6 questions could not be asked") as raised:
            service_scan.scan(fleet, at, cells)
        assert raised.value.fact.count("error: down") == 4
