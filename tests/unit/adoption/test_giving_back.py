"""Rounds of a restore, with a simulated host that obeys orders or does not."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.adoption import giving_back, remote
from testbed.adoption.compare import Orders
from testbed.adoption.giving_back import Compared, compare, give_back
from testbed.adoption.scope import SCOPE
from testbed.adoption.state import HostState, Unit, parsed
from testbed.adoption.store import Record
from testbed.errors import ProvisioningError, UsageError

STATE = {
    "version": 1,
    "scope": {name: list(getattr(SCOPE, name)) for name in ("copied", "noted", "listed", "left")},
    "machine": {"board": "b", "boot": "1"},
    "packages": ["acl\t1\tinstalled"],
    "files": [],
    "units": {"ssh.service": ["active", "running", "1"]},
    "sysctls": {"vm/swappiness": "60\n"},
    "modules": [],
    "links": {"eth0": "52 hardware"},
    "mounts": ["/"],
    "rules": "",
}
BEFORE = parsed(json.dumps(STATE).encode())
CHANGED = replace(
    BEFORE,
    packages={"acl": "1", "tcpdump": "4"},
    units={"ssh.service": Unit("active", "running", "2")},
    sysctls={"vm/swappiness": "10\n"},
)


class Host:
    """A host in memory.

    Args:
        state: what it is.
        obeys: carries an order out.
    """

    def __init__(self, state: HostState, obeys: Callable[[Host, Orders], None]) -> None:
        self.state, self.obeys = state, obeys
        self.calls: list[Orders] = []

    def restore(self, _: str, __: Path | None, orders: Orders, ___: dict[str, bytes]) -> None:
        self.calls.append(orders)
        self.obeys(self, orders)


def obedient(host: Host, orders: Orders) -> None:
    units = {
        name: replace(unit, run="9") if name in orders.restart else unit
        for name, unit in host.state.units.items()
    }
    host.state = replace(
        host.state,
        packages={name: item for name, item in host.state.packages.items() if name not in orders.purge},
        sysctls={**host.state.sysctls, **orders.sysctls},
        units=units,
    )


def stubborn(_: Host, orders: Orders) -> None:
    if orders.purge:
        raise ProvisioningError("not all could be given back", fact="apt-get has failed", remedy="look at it")


@pytest.fixture
def record(tmp_path: Path) -> Record:
    made = Record(tmp_path, "kvm1")
    packed = io.BytesIO()
    text = json.dumps(STATE).encode()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("state.json")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    with made.locked():
        made.keep(packed)
    return made


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(CHANGED, obedient)
    monkeypatch.setattr(remote, "look", lambda *_: made.state)
    monkeypatch.setattr(remote, "restore", made.restore)
    return made


def refuse(_: Compared) -> None:
    raise UsageError("not changed", fact="the answer was no", remedy="agree")


def test_differences_are_taken_back_until_none_is_left(record: Record, host: Host) -> None:
    asked: list[Compared] = []
    assert give_back(record, None, asked.append, print) == []
    assert len(asked) == len(host.calls) == 1
    assert host.calls[0] == Orders(
        purge=["tcpdump"], sysctls={"vm/swappiness": "60\n"}, restart=["ssh.service"]
    )


def test_nothing_changes_without_consent(record: Record, host: Host) -> None:
    with pytest.raises(UsageError, match="not changed"):
        give_back(record, None, refuse, print)
    assert host.calls == []
    assert record.settled() is None


def test_a_killed_restore_goes_on_without_a_question(record: Record, host: Host) -> None:
    def killed(now: Host, orders: Orders) -> None:
        obedient(now, replace(orders, purge=[]))
        raise KeyboardInterrupt

    host.obeys = killed
    with pytest.raises(KeyboardInterrupt):
        give_back(record, None, lambda _: None, print)
    host.obeys = obedient
    host.calls.clear()
    assert give_back(record, None, refuse, print) == []
    assert host.calls[0] == Orders()  # waits for the earlier call
    assert host.calls[1].purge == ["tcpdump"]
    assert len(host.calls) == 2


def test_a_host_that_does_not_obey_is_not_asked_for_ever(record: Record, host: Host) -> None:
    host.obeys = stubborn
    said: list[str] = []
    left = give_back(record, None, lambda _: None, said.append)
    assert {(item.kind, item.subject) for item in left} == {
        ("package", "tcpdump"),
        ("sysctl", "vm/swappiness"),
    }
    assert len(host.calls) <= giving_back._ROUNDS
    assert any("apt-get has failed" in text for text in said)


def test_units_alone_are_no_reason_to_change_a_host(record: Record, host: Host) -> None:
    host.state = replace(BEFORE, units=CHANGED.units)
    assert give_back(record, None, refuse, print) == []
    assert host.calls == []


def test_another_host_is_left_alone(record: Record, host: Host) -> None:
    host.state = replace(CHANGED, machine={"board": "another", "boot": "1"})
    with pytest.raises(UsageError, match="not the host that was recorded"):
        give_back(record, None, lambda _: None, print)
    with pytest.raises(UsageError, match="not the host that was recorded"):
        compare(record, None)
    assert host.calls == []
