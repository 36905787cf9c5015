"""The embedded libvirt finds running machines again, or the command says that it did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.drivers.hypervisor import connection
from testbed.drivers.hypervisor.connection import Domain, Hypervisor
from testbed.errors import ProvisioningError


class Libvirt:
    """Stands in for the connection of the library."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    found = Libvirt()
    monkeypatch.setattr("testbed.drivers.hypervisor.connection.libvirt.open", lambda _: found)
    monkeypatch.setattr(connection, "_start_loop", lambda: None)
    monkeypatch.setattr(connection, "_SETTLE_S", 0.3)
    return found


def _open(root: Path, monkeypatch: pytest.MonkeyPatch, *states: str) -> Hypervisor:
    """Open an embedded libvirt with a status file; its domain has one state after the other."""
    (root / "run/qemu").mkdir(parents=True)
    (root / "run/qemu/lab.node.xml").write_text("<domstatus/>")
    left = list(states)

    def domains(_: Hypervisor) -> list[Domain]:
        state = left.pop(0) if len(left) > 1 else left[0]
        return [Domain("lab.node", "u", state, "<domain/>")] if state else []

    monkeypatch.setattr(Hypervisor, "domains", domains)
    return Hypervisor("qemu:///embed", root)


@pytest.mark.parametrize("state", ["", "shut off"])
def test_a_machine_that_is_not_found_again_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Libvirt, state: str
) -> None:
    with pytest.raises(ProvisioningError, match="not found again") as caught:
        _open(tmp_path, monkeypatch, state)
    assert "lab.node" in caught.value.fact
    assert "testbed down" in caught.value.remedy
    assert library.closed


@pytest.mark.parametrize("state", ["running", "paused", "crashed", "suspended", "shutting down"])
def test_a_machine_that_is_found_again_in_any_state_can_be_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Libvirt, state: str
) -> None:
    _open(tmp_path, monkeypatch, "", state)
    assert not library.closed
