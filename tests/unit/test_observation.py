"""What counts as arrived, and that an observation which breaks off leaves no recorder behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.model.policy import endpoints
from testbed.model.resolve import resolve
from testbed.spec.load import read
from testbed.verify import network
from testbed.verify.observation import Observation

LAB = resolve(read(Path(__file__).parents[2] / "topologies/one-node.yaml").spec)
SOURCE, TARGET = [item for item in endpoints(LAB) if item.tenant == endpoints(LAB)[0].tenant][:2]


def _observation(guest: str, **record: str) -> Observation:
    records: dict[str, list[dict[str, str]]] = {item.guest: [] for item in endpoints(LAB)}
    records[guest].append(record)
    return Observation("tb-0-", records, {})


@pytest.mark.parametrize(("address", "expected"), [(str(TARGET.address), True), ("10.9.9.9", False)])
def test_an_arp_request_counts_for_the_address_it_asks_for(address: str, expected: bool) -> None:
    seen = _observation(TARGET.guest, kind="arp-request", mac=SOURCE.mac, target=address, direction="in")
    assert seen.resolved(SOURCE, TARGET) is expected
    assert seen.resolved(TARGET, SOURCE) is False


@pytest.mark.parametrize(("address", "expected"), [(str(TARGET.address), True), ("10.9.9.9", False)])
def test_an_arp_answer_counts_for_the_address_it_tells_of(address: str, expected: bool) -> None:
    assert _observation(SOURCE.guest, kind="arp-reply", mac=TARGET.mac, ip=address, direction="in").resolved(SOURCE, TARGET) is expected


def test_a_frame_that_a_recorder_saw_leaving_has_not_arrived() -> None:
    assert not _observation(TARGET.guest, token="tb-0-c1.", direction="out").arrived("c1", TARGET.guest)
    assert _observation(TARGET.guest, token="tb-0-c1.", direction="in").arrived("c1", TARGET.guest)


def test_an_observation_that_breaks_off_ends_its_recorders() -> None:
    phases: list[tuple[str, str]] = []

    def in_guest(guest: Any, _argv: list[str], stdin: bytes, **_: Any) -> bytes:
        phase = next(word for word in ("listen", "send", "finish", "stop") if f'"phase": "{word}"'.encode() in stdin)
        phases.append((guest.label, phase))
        if guest is LAB.guests[0]:
            raise InstrumentError("the agent does not answer", fact="silence", remedy="")
        return json.dumps({}).encode()

    with pytest.raises(InstrumentError, match="does not answer"):
        network.observe(SimpleNamespace(testbed=LAB, in_guest=in_guest), [])  # type: ignore[arg-type]
    assert {label for label, phase in phases if phase == "stop"} == {guest.label for guest in LAB.guests}
