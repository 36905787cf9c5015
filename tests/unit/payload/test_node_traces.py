"""The program that looks for traces of an attack, against this machine (BND-01)."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from testbed.payload import node_traces
from testbed.payload.attacks import device_fuzz


def test_a_changed_inode_is_found_whatever_its_times_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_traces, "_TREES", (str(tmp_path),))
    old, hidden = tmp_path / "old", tmp_path / "folder/hidden"
    hidden.parent.mkdir()
    old.touch()
    time.sleep(0.05)
    since = time.time()
    time.sleep(0.05)
    hidden.write_text("x")
    os.utime(hidden, (0, 0))
    (tmp_path / "link").symlink_to("old")
    assert sorted(node_traces._changed(since, frozenset())) == [
        ("file", str(hidden)),
        ("link", str(tmp_path / "link")),
    ]
    assert list(node_traces._changed(since, frozenset({str(tmp_path / "folder")}))) == [
        ("link", str(tmp_path / "link"))
    ]
    old.chmod(0o777)
    assert ("file", str(old)) in set(node_traces._changed(since, frozenset()))


def test_processes_and_sockets_of_this_machine_are_found() -> None:
    own = [item for item in node_traces._processes() if item[0] == os.getpid()]
    assert [(item[2], item[4]) for item in own] == [(str(Path("/proc/self/exe").readlink()), os.geteuid())]
    with socket.socket() as listening, socket.socket(type=socket.SOCK_DGRAM) as receiving:
        listening.bind(("127.0.0.1", 0))
        receiving.bind(("127.0.0.1", 0))
        udp = ("udp", f"0100007F:{receiving.getsockname()[1]:04X}")
        tcp = ("tcp", f"0100007F:{listening.getsockname()[1]:04X}")
        assert udp in set(node_traces._sockets())
        assert tcp not in set(node_traces._sockets())
        listening.listen()
        assert tcp in set(node_traces._sockets())


def test_the_machine_code_of_the_attack_is_that_of_the_instructions() -> None:
    """Each function ends with a return; in front of it is out of 8, 16 and 32 bits, and in of 8 bits."""
    code, step = device_fuzz._CODE, device_fuzz._STEP
    functions = [code[at : at + step].rstrip(b"\x90") for at in range(0, len(code), step)]
    assert [function[4:-1] for function in functions] == [b"\xee", b"\x66\xef", b"\xef", b"\xec"]
    assert all(function.endswith(b"\xc3") for function in functions)


def test_the_console_is_not_among_the_ports() -> None:
    console = set(range(0x3F8, 0x400))
    for first, count in (*device_fuzz._PORTS, *device_fuzz._DEADLY_PORTS):
        assert not console & set(range(first, first + count))
