"""The inventory's collectors, with canned and with hostile output of tools."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from testbed.drivers.host.inventory_program import compose
from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread, masked, read, setting, side_by_side
from testbed.payload.inventory.host import accounts, confinement, files, guests, kernel
from testbed.payload.inventory.network import databases, filters, sockets, switch


def taken(records: Records) -> dict[tuple[str, str], Any]:
    found = [json.loads(line) for line in records.sorted()]
    return {(item["domain"], item["key"]): item["value"] for item in found}


def test_rows_of_a_database_are_named_by_what_they_are() -> None:
    port, interface = "11111111-0000-0000-0000-000000000001", "22222222-0000-0000-0000-000000000002"
    tables: dict[str, list[databases.Row]] = {
        "Port": [
            {
                "_uuid": ["uuid", port],
                "name": "tap1",
                "interfaces": ["uuid", interface],
                "tag": ["set", []],
            }
        ],
        "Interface": [
            {
                "_uuid": ["uuid", interface],
                "name": "tap1",
                "options": ["map", [["psk", "hunter2"], ["key", "flow"]]],
                "external_ids": ["map", [["iface-id", "x"]]],
            }
        ],
        "Mirror": [{"_uuid": ["uuid", "33"], "name": "", "select_all": True}],
    }
    records = Records()
    databases.record(records, "switch", tables)
    found = taken(records)
    assert found["switch Port", "tap1"] == {"name": "tap1", "interfaces": "Interface tap1", "tag": []}
    assert found["switch Interface", "tap1"]["options"] == {"psk": "(masked)", "key": "flow"}
    assert ("switch Mirror", "(the only row)") in found
    again = Records()
    tables["Mirror"][0]["_uuid"] = ["uuid", "44"]
    databases.record(again, "switch", tables)
    assert again.sorted() == records.sorted()


FLOWS = """\
 cookie=0x5a, duration=12.3s, table=0, n_packets=7, n_bytes=8, priority=100,in_port=1 actions=resubmit(,8)
 cookie=0x0, table=44, priority=65535 actions=output:2
NXST_FLOW reply (xid=0x4):
"""


def test_flows_of_every_table_are_records_without_counters() -> None:
    records = Records()
    switch.flows(records, "br-int", "", FLOWS)
    assert taken(records) == {
        ("flow", "br-int table 0 priority=100,in_port=1"): {"cookie": "0x5a", "actions": "resubmit(,8)"},
        ("flow", "br-int table 44 priority=65535"): {"cookie": "0x0", "actions": "output:2"},
    }


def test_groups_and_ports_of_the_switch() -> None:
    records = Records()
    switch.others(
        records, "br-int", "dump-groups", "OFPST_GROUP reply:\n group_id=1,type=all,bucket=actions=output:1\n"
    )
    switch.ports(
        records,
        "br-int",
        "",
        "OFPT_FEATURES:\n 1(tap1): addr:fe:00:00:00:00:01\n     config:     NO_FLOOD\n     state: 0\n",
    )
    found = taken(records)
    assert found["flow group", "br-int group_id=1,type=all,bucket=actions=output:1"] is True
    assert found["switch port", "br-int tap1"] == "config:     NO_FLOOD"


STATE = (
    "src 192.0.2.1 dst 192.0.2.2\\\tproto esp spi 0xc1 reqid 1 mode transport\\\treplay-window 32 \\\t"
    "aead rfc4106(gcm(aes)) 0x0123456789abcdef 128\\\t"
    "anti-replay context: seq 0x1, oseq 0x0, bitmap 0x0\\\tif_id 0x2"
)


def test_a_state_of_xfrm_is_its_algorithms_and_never_a_key() -> None:
    shape = filters.shape(STATE)
    assert "rfc4106(gcm(aes)) 128" in shape
    assert "mode transport" in shape
    assert "if_id 0x2" in shape
    assert "0123456789abcdef" not in shape
    assert "0xc1" not in shape


def test_profiles_are_what_the_kernel_holds(tmp_path: Path) -> None:
    for name, mode, digest in (("libvirt-1.7", "enforce", "aa"), ("other.8", "complain", "bb")):
        folder = tmp_path / "profiles" / name
        folder.mkdir(parents=True)
        for file, text in (
            ("name", name.split(".")[0]),
            ("mode", mode),
            ("sha256", digest),
            ("raw_sha256", digest * 2),
        ):
            (folder / file).write_text(f"{text}\n")
    (tmp_path / "namespaces/inner/profiles/p.1").mkdir(parents=True)
    records = Records()
    confinement.collect(records, str(tmp_path))
    assert taken(records) == {
        ("profile", "libvirt-1"): {"mode": "enforce", "sha256": "aa", "raw sha256": "aaaa"},
        ("profile", "other"): {"mode": "complain", "sha256": "bb", "raw sha256": "bbbb"},
        ("profile namespace", ":inner"): True,
        ("profile", ":inner p"): {},
    }


def test_profiles_that_cannot_be_listed_are_unread(tmp_path: Path) -> None:
    (tmp_path / "profiles").touch()
    records = Records()
    confinement.collect(records, str(tmp_path))
    assert taken(records) == {("unread", f"profile {tmp_path}/profiles"): "Not a directory"}


def test_a_file_that_goes_during_the_walk_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "find").write_text('#!/bin/sh\ncase "$*" in *-ignore_readdir_race*) ;; *) exit 1 ;; esac\n')
    (tmp_path / "find").chmod(0o755)
    monkeypatch.setattr(programs, "PATH", str(tmp_path))
    records = Records()
    files.Walk(records, 0, b"key").run([str(tmp_path)])
    assert records.lines == []


def test_the_order_of_lines_counts_but_where_udev_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(text: str) -> object:
        (tmp_path / "b254:0").write_text(text)
        (tmp_path / "b254:0").chmod(0o644)
        records = Records()
        files.Walk(records, 0, b"key").run([str(tmp_path)])
        return taken(records)["file", str(tmp_path / "b254:0")]["sha256"]

    assert digest("S:one\nE:two\n") != digest("E:two\nS:one\n")
    monkeypatch.setattr(files, "_UNORDERED", f"{tmp_path}/")
    assert digest("S:one\nE:two\n") == digest("E:two\nS:one\n")
    assert digest("S:one\nE:two\n") != digest("E:two\nS:three\n")
    assert digest("") == hashlib.sha256(b"").hexdigest()


def test_of_old_files_only_those_that_give_rights_are_recorded(tmp_path: Path) -> None:
    for name, mode in (("data", 0o644), ("program", 0o755), ("setuid", 0o4755), ("plain setgid", 0o2644)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    later = time.time() + 3600
    records = Records()
    files.Walk(records, later, b"key").run([str(tmp_path)])
    assert {key for _, key, _ in records.lines} == {f"{tmp_path}/setuid", f"{tmp_path}/plain setgid"}
    records = Records()
    files.Walk(records, 0, b"key").run([str(tmp_path)])
    assert len(records.lines) == 5  # the folder too


@pytest.mark.parametrize(
    ("names", "recorded"), [(["security.capability"], 1), (["user.x"], 0), ([], 0), (None, 0)]
)
def test_an_old_program_with_capabilities_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | None, recorded: int
) -> None:
    def listed(_: str, *, follow_symlinks: bool) -> list[str]:
        assert not follow_symlinks
        if names is None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return names

    monkeypatch.setattr(os, "listxattr", listed)
    monkeypatch.setattr(os, "getxattr", lambda *_, **__: b"\1")
    (tmp_path / "program").touch(0o755)
    records = Records()
    files.Walk(records, time.time() + 3600, b"key").run([str(tmp_path)])
    assert len(records.lines) == recorded


def test_a_setting_is_read_whole_whatever_its_length(tmp_path: Path) -> None:
    for length in (0, 4095, 4096, 65535):
        (tmp_path / "setting").write_text("x" * length)
        assert setting(str(tmp_path / "setting")) == "x" * length
    (tmp_path / "setting").write_text("x" * 65536)
    with pytest.raises(Unread, match="more than 65536"):
        setting(str(tmp_path / "setting"))
    with pytest.raises(Unread, match="No such file"):
        setting(str(tmp_path / "absent"))


def test_values_are_written_as_json_writes_them() -> None:
    values = ["\N{SNOWMAN} \ud800 \n", 2**60, 0.5, None, True, {"b": [1, {}], "a": '"'}, [], float("inf")]
    records = Records()
    for value in values:
        records.add("unit", "x", value)
    assert [text for *_, text in records.lines] == [
        json.dumps(value, sort_keys=True, separators=(",", ":")) for value in values
    ]


def test_attributes_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> None:
        def listxattr(*_: object, **__: object) -> list[str]:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "listxattr", listxattr)

    fails(errno.EACCES)
    assert files._attributes(str(tmp_path)) == {"unread": "Permission denied"}
    fails(errno.ENOTSUP)
    assert files._attributes(str(tmp_path)) == {}


@pytest.mark.parametrize("end", ["\n", ""], ids=["before libvirt 11", "since"])
def test_objects_of_libvirt_come_from_two_processes(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    scripts: list[str] = []

    def run(argv: list[str], **_: Any) -> str:
        scripts.append(argv[-1])
        if "dumpxml" in argv[-1]:
            domain = "<domain type='kvm' id='7'>\n  <name>red.web</name>\n</domain>\n"
            return f"{domain}end-of-one-object{end}<pool/>\nend-of-one-object{end}"
        parts = ["red.web\nits 'name'\n", "", "", "red\n", "", "", " 0a  ceph client.x\n"]
        return "".join(f"{part}end-of-one-object{end}" for part in parts)

    monkeypatch.setattr(programs, "run", run)
    records = Records()
    guests.collect(records)
    found = taken(records)
    assert found["guest", "red.web"] == [
        "0 <domain type='kvm' id='N'>",
        "1 <name>red.web</name>",
        "0 </domain>",
    ]
    assert found["guest", "its 'name'"] == "its name cannot be given to virsh"
    assert found["pool", "red"] == ["0 <pool/>"]
    assert found["libvirt secret", "0a ceph client.x"] is True
    assert "its 'name'" not in scripts[1]


def test_a_list_of_libvirt_that_fails_is_unread_and_not_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "virsh").write_text(
        """#!/bin/sh
        for script; do :; done  # the last
        case $script in
        *dumpxml*) echo "error: Domain not found" >&2; printf 'end-of-one-object' ;;
        *) echo red.web; printf 'end-of-one-object%.0s' 1 2 3 4 5 6 7; echo "error: no pools" >&2; exit 1 ;;
        esac
        """
    )
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setattr(programs, "PATH", str(tmp_path))
    records = Records()
    guests.collect(records)
    assert {(domain, key) for domain, key, _ in records.lines} == {
        ("unread", "guests error: no pools"),
        ("unread", "guests error: Domain not found"),
        ("unread", "guest red.web"),
    }


@pytest.mark.parametrize(
    ("password", "state"),
    [
        ("", "none is asked for"),
        ("*", "locked"),
        ("!", "locked"),
        ("!$y$j9T$abc", "locked, one is set"),
        ("$y$j9T$abc", "set, of kind y"),
    ],
)
def test_of_a_password_its_state_is_recorded(password: str, state: str) -> None:
    assert accounts.state(password) == state


@pytest.mark.parametrize(
    "text", ["--password hunter2", "token=hunter2", "PSK: hunter2", "my_secret = hunter2"]
)
def test_what_names_a_secret_is_masked(text: str) -> None:
    assert "hunter2" not in masked(text)


def test_sockets_are_told_from_the_kernels_tables(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0 "
        "       0 11 1 0 100 0 0 10 0\n"
        "   1: 0100007F:0016 0200007F:D431 01 00000000:00000000 00:00000000 00000000     0 "
        "       0 12 1 0 100 0 0 10 0\n"
        "   2: 0100007F:D431 0200007F:19F2 01 00000000:00000000 00:00000000 00000000   107 "
        "       0 13 1 0 100 0 0 10 0\n"
    )
    (tmp_path / "unix").write_text(
        "Num RefCount Protocol Flags Type St Inode Path\n0: 2 0 00010000 0001 01 14 @/abs\n"
        "0: 2 0 0 0001 03 15\n"
    )
    for name in ("udp", "packet", "netlink"):
        (tmp_path / name).write_text("header\n")
    found = {item.inode: (item.text, item.open) for item in sockets.table(str(tmp_path))}
    assert found == {
        "11": ("tcp 127.0.0.1:22", True),
        "12": ("tcp at 22 from 127.0.0.2", False),
        "13": ("tcp to 127.0.0.2:6642", False),
        "14": ("unix stream @/abs", True),
        "15": ("unix stream", False),
    }


def test_a_collector_that_hangs_or_breaks_is_a_record() -> None:
    def hang(records: Records) -> None:
        time.sleep(60)

    def breaks(records: Records) -> None:
        records.add("unit", "before")
        raise KeyError("x")

    def dies(records: Records) -> None:
        os._exit(7)

    records = Records()
    started = time.monotonic()
    side_by_side(
        {"hang": hang, "breaks": breaks, "dies": dies, "works": lambda own: own.add("unit", "works")},
        records,
        2,
        20,
    )
    assert time.monotonic() - started < 20
    found = taken(records)
    assert found["unit", "works"] is True
    assert found["unit", "before"] is True
    assert found["unread", "hang "] == "not done within 2 s"
    assert found["unread", "breaks "] == "KeyError: 'x'"
    assert found["unread", "dies "] == "it ended with status 7"


def test_collectors_wait_for_their_turn_and_for_no_longer_than_all_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    records, started = Records(), time.monotonic()
    hangs = {f"hangs {number}": lambda _: time.sleep(60) for number in range(3)}
    side_by_side({"works": lambda own: own.add("unit", "works"), **hangs}, records, 2, 3)
    assert time.monotonic() - started < 20
    found = taken(records)
    assert found["unit", "works"] is True
    assert [found["unread", f"hangs {number} "] for number in range(3)] == [
        "not done within 2 s",
        "not done within 2 s",
        "not done within 1 s",
    ]


def test_a_tool_that_is_missing_fails_hangs_or_floods_is_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("fails", "echo no >&2; exit 3"),
        ("hangs", "exec sleep 60"),
        ("floods", "exec cat /dev/zero"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(programs, "PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, told in (
        ("absent", "not installed"),
        ("fails", "status 3: no"),
        ("hangs", "does not end"),
        ("floods", "prints more than"),
    ):
        with pytest.raises(Unread, match=told):
            programs.run([name], seconds=1 if name == "hangs" else 30)


def test_records_are_bounded_and_sorted() -> None:
    records = Records()
    records.add("unit", "b" * 5000, "v")
    records.add("unit", "a", ["x" * 100_000])
    records.add("unit", "a", 1)
    first, second, third = (json.loads(line) for line in records.sorted())
    assert (first["key"], second["key"]) == ("a", "a #2")
    assert {json.dumps(first["value"])[:1], json.dumps(second["value"])[:1]} == {"1", "{"}
    assert len(third["key"]) == 1000
    assert max(len(line) for line in records.sorted()) < 50_000


def test_a_pipe_or_an_endless_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read(str(tmp_path / "pipe")) == ""
    assert len(read("/dev/zero", 1000)) == 1000


def test_the_program_is_one_compressed_text() -> None:
    assert len(compose({"key": "00"})) < 60_000


def test_a_meter_is_one_record_with_its_bands() -> None:
    records = Records()
    printed = "OFPST_METER_CONFIG reply:\nmeter=3 kbps bands=\ntype=drop rate=9\nmeter=4 pktps "
    printed += "bands=\ntype=drop rate=5\n"
    switch.others(records, "br-int", "dump-meters", printed)
    assert set(taken(records)) == {
        ("flow meter", "br-int meter=3 kbps bands= type=drop rate=9"),
        ("flow meter", "br-int meter=4 pktps bands= type=drop rate=5"),
    }


def test_errors_that_the_kernel_reports_are_records_by_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/kmsg gives one message for each read, EPIPE where some were lost, and EAGAIN at the end."""
    at = "WARNING: CPU: 0 PID: 3 at include/net/ip_tunnels.h:707 geneve_udp_encap_recv+0x1/0x2 [geneve]"
    told: list[bytes | OSError] = [
        f"4,9,1,-;{at}\n SUBSYSTEM=x\n".encode(),
        BrokenPipeError(),
        f"4,11,2,-;{at}\n".encode(),
        b"2,12,3,-;kernel BUG at mm/slub.c:12!\n",
        b"1,13,4,-;BUG: kernel NULL pointer dereference, address: 0\n",
        b"0,14,5,-;watchdog: BUG: soft lockup - CPU#0 stuck\n",
        b"0,15,6,-;BUG: workqueue lockup - pool\n",
        b"12,16,7,-;a guest writes WARNING: CPU: 0 PID: 3 at a.c:1 f+0x1\n",
        BlockingIOError(),
    ]

    def read(_: int, __: int) -> bytes:
        item = told.pop(0)
        if isinstance(item, OSError):
            raise item
        return item

    log = tmp_path / "kmsg"
    log.touch()
    monkeypatch.setattr(kernel.os, "read", read)
    records = Records()
    kernel.reports(records, str(log))
    assert [(domain, key) for domain, key, _ in records.lines] == [
        ("kernel report", "BUG: kernel NULL pointer dereference"),
        ("kernel report", "include/net/ip_tunnels.h:707 geneve_udp_encap_recv"),
        ("kernel report", "mm/slub.c:12"),
    ]
    assert told == []


def test_a_log_of_the_kernel_that_cannot_be_read_is_unread(tmp_path: Path) -> None:
    records = Records()
    kernel.reports(records, str(tmp_path / "none"))
    assert [item[:2] for item in records.lines] == [("unread", f"kernel report {tmp_path}/none")]
