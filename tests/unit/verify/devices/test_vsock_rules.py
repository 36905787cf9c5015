"""vsock: every device, listener and path is a fault; a path that is not tried is not judged (DEV-04)."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.verify.devices import declared, vsock

CONTEXTS, PORTS = (0, 2, 3), (22, 1024)
LISTED = {"protocols": ["TCP", "AF_VSOCK"], "port": 77, "sockets": ["v_str LISTEN 0 0 *:77 *:*"]}


def attempts(**ended: list[list[int]]) -> dict[str, Any]:
    """Return attempts that ended as in a guest without vsock, but for some."""
    moved = [tuple(item) for tried in ended.values() for item in tried]
    normal: dict[str, list[list[int]]] = {"own": [], "ENODEV": []}
    for context, port in product((1, *CONTEXTS), PORTS):
        if (context, port) not in moved:
            normal["own" if context in (1, 2) else "ENODEV"].append([context, port])
    outcomes = {name: normal.get(name, []) + ended.get(name, []) for name in {**normal, **ended}}
    return {"outcomes": outcomes}


def test_a_guest_without_vsock_reaches_itself_only() -> None:
    assert vsock.paths(attempts(), CONTEXTS, PORTS) == []
    assert vsock.paths({"refused": "EAFNOSUPPORT"}, CONTEXTS, PORTS) == []
    nowhere = [[context, port] for context in (1, *CONTEXTS) for port in PORTS]
    assert vsock.paths({"outcomes": {"ENODEV": nowhere}}, CONTEXTS, PORTS) == []


@pytest.mark.parametrize("outcome", ["reached", "ECONNRESET", "timeout", "ETIMEDOUT", "EHOSTUNREACH"])
@pytest.mark.parametrize("place", [[2, 22], [3, 1024], [0, 22]])
def test_every_answer_but_a_missing_transport_is_a_path(outcome: str, place: list[int]) -> None:
    (fault,) = vsock.paths(attempts(**{outcome: [place]}), CONTEXTS, PORTS)
    assert fault == f"a connection over vsock to {place[0]}:{place[1]} ended with {outcome}"


def test_a_context_of_its_own_is_a_device() -> None:
    assert vsock.paths(attempts(own=[[3, 22]]), CONTEXTS, PORTS) != []


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"refused": "EACCES"},
        {"refused": "EADDRINUSE"},
        {"outcomes": {"ENODEV": [[2, 22]]}},
        {"outcomes": {"ENODEV": "x"}},
        attempts(reached=[[1, 22]]),
        attempts(ENODEV=[[1, 22]]),
        attempts(own=[[2, 22], [2, 22]]),
    ],
)
def test_what_was_not_tried_is_not_judged(answer: object) -> None:
    with pytest.raises(UnseenError):
        vsock.paths(answer, CONTEXTS, PORTS)


def test_a_kernel_without_vsock_has_no_listener() -> None:
    assert vsock.listeners({"protocols": ["TCP"], "port": 0, "sockets": []}) == []
    assert vsock.listeners(LISTED) == []


def test_every_other_socket_of_a_node_is_a_fault() -> None:
    line = "v_str LISTEN 0 0 *:1024 *:*"
    assert vsock.listeners({**LISTED, "sockets": [*LISTED["sockets"], line]}) == [line]  # type: ignore[misc]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"protocols": [], "port": 0, "sockets": []},
        {**LISTED, "sockets": []},
        {**LISTED, "sockets": ["v_str LISTEN 0 0 *:771 *:*"]},
        {**LISTED, "port": "x"},
    ],
)
def test_a_list_without_its_control_is_not_judged(answer: object) -> None:
    with pytest.raises(UnseenError):
        vsock.listeners(answer)


@pytest.mark.parametrize(
    ("source", "entry"),
    [
        (declared.XML, ("vsock virtio", "<vsock/>")),
        (declared.PERIPHERALS, ("vhost-vsock-pci", "")),
        (declared.PCI, ("1af4:1012", "00:1e.0")),
        (declared.GUEST_PCI, ("1af4:1053", "00:1e.0")),
        (declared.GUEST_VIRTIO, ("19", "")),
    ],
)
def test_a_vsock_device_is_a_fault_in_each_source(source: str, entry: declared.Entry) -> None:
    assert len(vsock.devices({source: Counter([entry, ("1af4:1005", "00:05.0"), ("4", "")])})) == 1
