"""What workers reach over networks, given how attempts ended on a real node (PRC-05)."""

from __future__ import annotations

from copy import deepcopy
from ipaddress import ip_address
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.verify.attackers import worker_network
from testbed.verify.attackers.worker_network import CONFINED, FAMILIES
from tests.shapes import lab_of

LAB = lab_of("two-tenants")
REQUEST: dict[str, Any] = {
    "workers": {"red.web": 7, "blue.web": 8},
    "families": FAMILIES,
    "confined": CONFINED,
    "targets": worker_network.targets(LAB, "node-a"),
}
OPENINGS = [f"open {name}" for name, *_ in FAMILIES]
SENDINGS = [f"send {kind} to {name}" for name, kind, *_ in REQUEST["targets"]]
OWN = OPENINGS[0]


def _answer() -> dict[str, Any]:
    """Return the answer of a node whose walls are closed."""
    account = dict.fromkeys(OPENINGS, "done") | {
        name: "ECONNREFUSED" if "tcp" in name else "EPERM" for name in SENDINGS
    }
    account |= {"open raw IP": "EPERM", "open packets of an interface": "EPERM"}
    names = [*OPENINGS, *(f"open {name}" for name, *_ in CONFINED), *SENDINGS]
    profile = dict.fromkeys(names, "EACCES") | {OWN: "done"}
    root = dict.fromkeys((*OPENINGS, *SENDINGS), "done")
    workers = {name: {"account": dict(account), "profile": dict(profile)} for name in REQUEST["workers"]}
    return {"before": root, "workers": workers, "after": dict(root)}


def _with(layer: str, attempt: str, outcome: str) -> dict[str, Any]:
    answer = _answer()
    answer["workers"]["blue.web"][layer][attempt] = outcome
    return answer


def test_every_network_of_a_lab_and_its_services_are_sent_to() -> None:
    assert [name.rpartition(" to ")[2] for name in SENDINGS] == [
        "ssh of its node", "the southbound database", "its node", "the network management",
        "the network fabric", "the network storage", "controller", "node-b",
    ]  # fmt: skip


def test_networks_are_sent_to_at_an_address_that_no_machine_has() -> None:
    """A packet to all machines would be refused for another reason (SO_BROADCAST, socket(7))."""
    for plane, address in (
        (name, ip_address(at)) for name, _, at, _ in REQUEST["targets"] if "network" in name
    ):
        (net,) = (LAB.lab_network(nic.plane).network for nic in LAB.nodes[0].nics if nic.plane in plane)
        assert address in {*net.hosts()}
        assert address not in {nic.address for machine in LAB.machines for nic in machine.nics}


def test_closed_walls_are_no_fault() -> None:
    assert worker_network.judged(_answer(), REQUEST) == []


@pytest.mark.parametrize(
    "attempt", [name for name in _answer()["workers"]["red.web"]["profile"] if name != OWN]
)
def test_each_socket_that_a_profile_lets_a_worker_open_is_a_fault(attempt: str) -> None:
    found = worker_network.judged(_with("profile", attempt, "done"), REQUEST)
    # what was sent without the profile is judged there; under it nothing is sent without a socket
    assert found == ([f"the profile of blue.web lets it {attempt}"] if attempt.startswith("open") else [])


def test_a_refused_connection_shows_that_the_profile_let_it_be_tried() -> None:
    assert worker_network.judged(_with("profile", "open TCP", "ECONNREFUSED"), REQUEST)


@pytest.mark.parametrize("attempt", [*SENDINGS, "open raw IP", "open packets of an interface"])
def test_each_thing_that_an_account_can_send_is_a_fault(attempt: str) -> None:
    assert worker_network.judged(_with("account", attempt, "done"), REQUEST) == [
        f"the account of blue.web can {attempt}"
    ]


def _changed(change: Any) -> dict[str, Any]:
    answer = _answer()
    change(answer)
    return answer


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        _with("profile", OWN, "EACCES"),
        _with("profile", "open UDP", "EMFILE"),
        _with("account", SENDINGS[0], "ETIMEDOUT"),
        _changed(lambda answer: answer["before"].update({SENDINGS[0]: "ECONNREFUSED"})),
        _changed(lambda answer: answer["after"].update({SENDINGS[0]: "ECONNREFUSED"})),
        _changed(lambda answer: answer["after"].clear()),
        _changed(lambda answer: (answer["before"].clear(), answer["after"].clear())),
        _changed(lambda answer: answer["workers"].pop("red.web")),
        _changed(lambda answer: answer["workers"]["red.web"]["account"].clear()),
        _changed(lambda answer: answer["workers"]["red.web"]["profile"].pop("open vsock")),
    ],
)
def test_attempts_that_would_not_have_shown_an_open_wall_are_not_judged(answer: object) -> None:
    with pytest.raises(UnseenError):
        worker_network.judged(deepcopy(answer), REQUEST)
