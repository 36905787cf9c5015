"""A missing, cut or late answer is no answer, wherever answers are read."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from test_node_checks import LAB

from checks import test_disruptions, test_guest_to_host, test_overlay, test_ovn_databases, test_storage
from checks.support.tunnel_frames import Injection
from testbed.drivers.places.controller import Controller
from testbed.drivers.ssh.command_session import LIMIT, Completed
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.exposure import machines, rogue
from testbed.model.topology import Plane
from testbed.payload.probe import sender
from testbed.verify.fleet import MachineView
from testbed.verify.witnesses.firewall_log import FirewallCounters


def _machine(stdout: bytes) -> MachineView:
    host: Any = SimpleNamespace(name="node", access=SimpleNamespace(address="-"))
    host.sudo = lambda command, **_: Completed(command, 0, stdout, b"")
    evidence: Any = SimpleNamespace(record=lambda *_: None)
    return MachineView(host, evidence)


def test_output_that_was_cut_is_no_output() -> None:
    assert len(_machine(b"x" * (LIMIT - 1)).read("dump")) == LIMIT - 1
    with pytest.raises(InstrumentError, match="more than is kept"):
        _machine(b"x" * LIMIT).read("dump")


@pytest.mark.parametrize("text", ["", "active\nactive\n", "active\nactive\nactive\nfailed\n"])
def test_services_that_are_not_told_do_not_run_unnoticed(text: str) -> None:
    host: Any = SimpleNamespace(name="controller", sudo=lambda _: Completed("-", 3, text.encode(), b""))
    central = Controller(LAB, None, host, 1.0)  # type: ignore[arg-type] # no workspace is needed
    with pytest.raises(ProvisioningError, match="which services run"):
        central._stopped()


_REFUSED = dict.fromkeys(
    ("in the clear", "without a certificate", "of its own making"), "refused: the channel ended"
)


def test_a_stranger_who_is_not_answered_in_time_was_not_refused() -> None:
    test_ovn_databases._require_refusals(_REFUSED, 3)
    for answers, asked in (
        ({**_REFUSED, "in the clear": "late"}, 3),
        ({**_REFUSED, "in the clear": "silent"}, 3),
        (_REFUSED, 4),
        ({}, 3),
    ):
        with pytest.raises(InstrumentError, match="did not refuse every foreign client"):
            test_ovn_databases._require_refusals(answers, asked)


@pytest.mark.parametrize("missing", ["br-int", "fabric0", "management0", LAB.guests[0].nics[0].tap])
def test_an_interface_that_is_not_there_is_not_silent(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[dict[str, str]] = []
    monkeypatch.setattr(
        test_guest_to_host, "listen_on", lambda _fleet, _machine, _prefix, macs: watched.append(macs)
    )
    taps = [nic.tap for guest in LAB.guests for nic in guest.nics]
    lines = [
        f"{name} 0a:00:00:00:00:{number:02x}"
        for number, name in enumerate([*test_guest_to_host._OWN, *taps, "lo"])
    ]
    fleet: Any = SimpleNamespace(topology=LAB)
    machine: Any = SimpleNamespace(name="node", read=lambda _: "\n".join(lines))
    test_guest_to_host._watch(fleet, machine, "tb-")
    assert watched[0].keys() == {*test_guest_to_host._OWN, *taps}
    lines = [line for line in lines if not line.startswith(f"{missing} ")]
    with pytest.raises(InstrumentError, match="does not have all its interfaces"):
        test_guest_to_host._watch(fleet, machine, "tb-")


def test_frames_are_not_left_out_of_an_attack() -> None:
    request = {"probes": [{}] * (sender.MAX_PROBES + 1), "duration": 0, "halt": "-"}
    with pytest.raises(ValueError, match="5001 frames, and 5000 at most"):
        sender.stream(request)


@pytest.mark.parametrize("mounts", ["rw,relatime", "ro,relatime\nrw,relatime", "rw\nro", ""])
def test_a_mount_over_another_hides_none(mounts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images are mounted twice, each of the mounts is read-only."""
    monkeypatch.setattr(test_storage, "all_succeeded", lambda _, jobs: [set() for _ in jobs])

    def read(command: str) -> str:
        if command.startswith("findmnt"):
            return mounts
        return "444 root /images/guest/root.raw"

    def judge() -> None:
        fleet: Any = SimpleNamespace(topology=LAB)
        test_storage.test_base_images_are_immutable(fleet=fleet, node=node)

    node: Any = SimpleNamespace(name="node", read=read)
    with pytest.raises(AssertionError, match="mounted"):
        judge()
    mounts = "ro,relatime\nro"
    judge()


@pytest.mark.parametrize(
    "entry", ["user:64199:--x", "group::r-x", "default:user:64199:rwx", "other::--x", "group:100:r-x"]
)
def test_a_pool_lets_in_exactly_its_own(entry: str) -> None:
    own = [guest for guest in LAB.guests if guest.tenant == "red"]
    entries = [
        "user::rwx",
        *(f"user:{guest.uid}:--x" for guest in own),
        "group::---",
        "mask::--x",
        "other::---",
    ]
    node: Any = SimpleNamespace(read=lambda _: "\n".join(entries))
    test_storage._require_own_pool(node, own)
    kind = entry.rpartition(":")[0]
    entries = [entry, *(item for item in entries if item.rpartition(":")[0] != kind)]
    with pytest.raises(AssertionError, match="lets in"):
        test_storage._require_own_pool(node, own)


def _interfaces(*claims: tuple[str, dict[str, str]]) -> str:
    return json.dumps(
        {
            "headings": ["name", "external_ids"],
            "data": [[name, ["map", [*ids.items()]]] for name, ids in claims],
        }
    )


@pytest.mark.parametrize("port", ["Any port, really", "0123-abcd", 'with "quotes"', "", "ABCD", "two\nlines"])
def test_whatever_a_port_is_called_it_is_claimed(port: str) -> None:
    """A claim by a name that is no hexadecimal number is seen, by an interface of any name."""
    own = [(nic.tap, {"iface-id": nic.port, "vm-id": "x"}) for guest in LAB.guests for nic in guest.nics]
    fleet: Any = SimpleNamespace(topology=LAB)
    node: Any = SimpleNamespace(name="node", read=lambda _: _interfaces(("br-int", {}), *own))
    test_disruptions.test_ports_have_their_own_interfaces(fleet=fleet, node=node)
    for name in ("odd", 'an, "interface"', own[0][0]):
        node.read = lambda _, name=name: _interfaces(*own, (name, {"iface-id": port}))
        with pytest.raises(AssertionError, match="claims the port of no guest"):
            test_disruptions.test_ports_have_their_own_interfaces(fleet=fleet, node=node)
    node.read = lambda _: _interfaces(*own[1:])
    with pytest.raises(InstrumentError, match="have no interface"):
        test_disruptions.test_ports_have_their_own_interfaces(fleet=fleet, node=node)


def test_a_full_firewall_vouches_for_no_injection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet that the full set could not list was not necessarily accepted."""
    stranger = rogue(LAB.lab_network(Plane.FABRIC))
    node = next(site for site in machines(LAB) if site.plane is Plane.FABRIC and site.name == "node")
    injection = Injection("g0", "-", "node", str(stranger.address), str(node.address), 6081, (b"-",))
    told = {("198.18.1.9", str(node.address), "udp", port): 1.0 for port in range(4096)}
    own = (str(stranger.address), str(node.address), "udp", 6081)

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        return {"results": [{"id": line["id"], "state": "open", "sent": True} for line in request["probes"]]}

    def refused(ledger: FirewallCounters) -> set[str]:
        monkeypatch.setattr(test_overlay, "ledgers", lambda _: dict.fromkeys(("node", "controller"), ledger))
        fleet: Any = SimpleNamespace(topology=LAB)
        probe: Any = SimpleNamespace(ask=ask)
        return test_overlay._from_rogue(fleet, stranger, probe, [injection])

    assert refused(FirewallCounters({own: 1.0}, (), 4096)) == {"g0"}
    assert refused(FirewallCounters({}, (), 4096)) == set()
    with pytest.raises(InstrumentError, match="may have refused more than it tells"):
        refused(FirewallCounters(told, (), 4096))
