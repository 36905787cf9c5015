"""Questions that the inventory asks without a program for each: servers of OVS, netlink, iproute2."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread
from testbed.payload.inventory.network import databases, iproute, links, netlink, rpc, switch

SCHEMA: dict[str, Any] = {
    "tables": {"Bridge": {"columns": {"name": {}}}, "Port": {"columns": {"name": {}, "tag": {}}}}
}
ROWS = {
    "Bridge": [{"_uuid": ["uuid", "1"], "name": "br-int"}],
    "Port": [{"_uuid": ["uuid", "2"], "name": "tap1", "tag": ["set", []]}],
}


def _database(method: str, params: list[Any]) -> Any:
    """Answer as ovsdb-server does."""
    if method == "list_dbs":
        return ["Open_vSwitch", "_Server"]
    if method == "get_schema":
        return SCHEMA
    assert method == "transact"
    return [{"rows": ROWS[operation["table"]]} for operation in params[1:]]


def _serve(path: Path, answer: Callable[[str, list[Any]], Any], pieces: int = 1) -> None:
    """Answer each request of one client, in pieces, behind a request of the server's own."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener, listener.accept()[0] as client:
            while request := client.recv(65536):
                told = json.loads(request)
                probe = {"id": "echo", "method": "echo", "params": []}
                result = {"id": told["id"], "result": answer(told["method"], told["params"]), "error": None}
                data = (json.dumps(probe) + json.dumps(result)).encode()
                size = len(data) // pieces + 1
                for at in range(0, len(data), size):
                    client.sendall(data[at : at + size])

    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_database_is_read_over_one_connection(tmp_path: Path, pieces: int) -> None:
    _serve(tmp_path / "db.sock", _database, pieces)
    records = Records()
    assert databases.collect(records, "switch", str(tmp_path / "db.sock")) == ["br-int"]
    assert sorted(records.lines) == [
        ("switch Bridge", "br-int", '{"name":"br-int"}'),
        ("switch Port", "tap1", '{"name":"tap1","tag":[]}'),
    ]


def test_a_table_that_cannot_be_read_leaves_no_half_of_a_database(tmp_path: Path) -> None:
    def refuse(method: str, params: list[Any]) -> Any:
        if method == "transact":
            return [{"rows": ROWS["Bridge"]}, {"error": "permission error"}]
        return _database(method, params)

    _serve(tmp_path / "db.sock", refuse)
    records = Records()
    with pytest.raises(Unread, match="permission error"):
        databases.collect(records, "switch", str(tmp_path / "db.sock"))
    assert records.lines == []


def test_bridges_whose_names_are_unknown_are_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = str(tmp_path / "absent")
    monkeypatch.setattr(databases, "present", lambda: {"switch": absent})
    monkeypatch.setattr(databases, "CONTROLS", {"switch": absent})
    monkeypatch.setattr(switch, "_SWITCH", absent)
    records = Records()
    switch.collect(records)
    assert {line[0] for line in records.lines} == {"unread"}
    assert {line[1].split()[0] for line in records.lines} == {"switch", "openflow", "database", "datapath"}


def test_a_server_that_closes_or_says_an_error_is_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.1.ctl"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    answers = [b'{"id":0,"error":"no such command"}', b'{"id":0}', b'{"id":0,']

    def run() -> None:
        with listener:
            for answer in answers:
                with listener.accept()[0] as client:
                    client.recv(65536)
                    client.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    for why in ("no such command", "without a result", "ends its answer early"):
        with rpc.Server(str(tmp_path / "x.*.ctl"), 20) as server, pytest.raises(Unread, match=why):
            server.ask("dpctl/show")


def test_the_socket_of_a_server_that_fell_is_passed_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as fallen:
        fallen.bind(str(tmp_path / "x.1.ctl"))
    _serve(tmp_path / "x.2.ctl", lambda method, _: f"{method} is answered")
    with rpc.Server(str(tmp_path / "x.*.ctl")) as server:
        assert server.ask("version") == "version is answered"


def _printing(answers: dict[str, str], failing: Sequence[str] = ()) -> Callable[..., str]:
    """Return a stand-in for a tool of iproute2 that has answers to commands."""

    def run(argv: list[str], stdin: str = "", *_: object) -> str:
        asked = stdin.splitlines() if "-batch" in argv else [" ".join(argv[1:])]
        told = "".join(answers[line] for line in asked if line not in failing)
        if any(line in failing for line in asked):
            raise Unread("status 1", told)
        return told

    return run


ANSWERS = {"link show": '[{"ifname":"lo"}]\n', "vlan show": "[]\n", "fdb show": '[{},{"mac":"x"}]\n'}
QUESTIONS = [("link", "link show"), ("vlan", "vlan show"), ("fdb", "fdb show")]


def test_answers_of_one_process_belong_to_their_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "run", _printing(ANSWERS))
    records = Records()
    found = iproute.asked(records, "first", ["bridge"], QUESTIONS)
    assert found == [[{"ifname": "lo"}], [], [{"mac": "x"}]]
    assert records.lines == []


def test_a_question_that_fails_is_named_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "run", _printing(ANSWERS, failing=["vlan show"]))
    records = Records()
    found = iproute.asked(records, "first", ["bridge"], QUESTIONS)
    assert found == [[{"ifname": "lo"}], [], [{"mac": "x"}]]
    assert records.lines == [("unread", "vlan first", '"status 1"')]


def test_a_list_is_empty_only_if_the_kernel_says_so() -> None:
    links = (0, 18, bytes(16))
    assert not netlink.empty(links)  # every network namespace has a link
    assert netlink.empty(netlink.classes(2**30))  # a link of this number does not exist
    assert not netlink.empty((0, 9999, bytes(16)))  # the kernel refuses
    assert not netlink.empty((31, 18, bytes(16)))  # there is no such family


@pytest.mark.parametrize(
    ("empty", "asked"),
    [
        ({netlink.LINKS_OF_BRIDGES, netlink.ENTRIES_OF_BRIDGES}, []),
        ({netlink.LINKS_OF_BRIDGES}, ["fdb show"]),
        ({netlink.ENTRIES_OF_BRIDGES}, ["link show", "vlan show"]),
        (set(), ["link show", "vlan show", "fdb show"]),
    ],
)
def test_bridges_are_asked_for_the_lists_that_are_not_empty(
    monkeypatch: pytest.MonkeyPatch, empty: set[tuple[int, int, bytes]], asked: list[str]
) -> None:
    given: list[str] = []

    def answers(_records: object, _place: str, _tool: object, questions: list[tuple[str, str]]) -> list[Any]:
        given.extend(command for _, command in questions)
        entries = [{"ifname": "b", "mac": "aa", "state": "permanent"}, {"ifname": "b", "mac": "learnt"}]
        return [entries if command == "fdb show" else [{"ifname": command}] for _, command in questions]

    monkeypatch.setattr(netlink, "empty", empty.__contains__)
    monkeypatch.setattr(iproute, "asked", answers)
    records = Records()
    links._bridges(records, "first")
    assert given == asked
    keys = {"fdb show": "first b aa", "link show": "first link show", "vlan show": "first vlan show"}
    assert {key for _, key, _ in records.lines} == {keys[command] for command in asked}


@pytest.mark.parametrize(
    ("protocols", "listeners"),
    [
        ("protocol  size\nAF_VSOCK  1336      0\n", ["first vsock 3:22 *:*"]),
        ("protocol  size\nAF_VSOCKET 1 0\nTCP 1 0\n", []),
    ],
)
def test_listeners_of_vsock_are_asked_for_where_the_kernel_has_them(
    monkeypatch: pytest.MonkeyPatch, protocols: str, listeners: list[str]
) -> None:
    monkeypatch.setattr(links, "read", lambda _: protocols)
    asked: list[str] = []

    def run(argv: list[str], **_: object) -> str:
        asked.append(argv[0])
        return "v_str LISTEN 0 3:22 *:*\n" if argv[0] == "ss" else ""

    monkeypatch.setattr(programs, "run", run)
    records = Records()
    links._vsock(records, "first")
    assert [key for _, key, _ in records.lines] == listeners
    assert asked == (["modprobe", "ss"] if listeners else [])
