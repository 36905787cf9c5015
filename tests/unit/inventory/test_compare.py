"""Differences of inventories, the list of allowed ones, and the table of controls."""

from __future__ import annotations

import ast
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from testbed.inventory import controls
from testbed.inventory.allowed import load
from testbed.inventory.compare import compare
from testbed.inventory.records import FORMAT, Inventory, parse, unpack
from testbed.payload.inventory.host.files import LOGS
from testbed.plan.controls import SEVERITY

ROOT = Path(__file__).parents[3]
PAYLOAD = ROOT / "testbed/payload/inventory"
CONTROLS = {*SEVERITY, "VMM-01", "VMM-03", "PRC-04", "ACC-10", "PRO-01", "BND-01", "XPL-01", "SCH-02"}
# A key that no line of the list may cover, for each domain: a stranger that runs, is trusted or listens.
STRANGERS = {
    "file": [
        f"{folder}/stranger-5f1c"
        for folder in (
            "",
            "/usr/bin",
            "/usr/sbin",
            "/usr/lib",
            "/usr/local/bin",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/python3/dist-packages",
            "/usr/lib/modules/6.12",
            "/etc",
            "/etc/ssh",
            "/etc/ssh/sshd_config.d",
            "/etc/sudoers.d",
            "/etc/pam.d",
            "/etc/cron.d",
            "/etc/systemd/system",
            "/etc/systemd/system/ssh.service.d",
            "/run/systemd/system",
            "/run/systemd/generator",
            "/run",
            "/run/systemd/transient",
            "/etc/ld.so.conf.d",
            "/etc/apparmor.d",
            "/etc/libvirt/hooks",
            "/run/libvirt",
            "/root",
            "/root/.ssh",
            "/home/admin",
            "/home/admin/.ssh",
            "/tmp",
            "/var/tmp",
            "/dev",
            "/dev/shm",
            "/opt",
            "/boot",
            "/var/lib",
            "/var/lib/testbed/images",
            "/var/lib/testbed/pools/red",
            "/var/spool/cron/crontabs",
            "/run/user/1000",
            "/run/openvswitch",
            "/run/ovn",
            "/var/cache",
            "/usr/local/share/ca-certificates",
            "/etc/ssl/certs",
            "/etc/openvswitch",
            "/run/netns",
            "/run/udev/rules.d",
            "/run/tmpfiles.d",
        )
    ],
    "listener": [
        "first tcp 0.0.0.0:47123",
        "first udp 0.0.0.0:47123",
        "first unix stream /run/stranger",
        "first unix stream @stranger",
        "first packet 0003 link 2",
        "first vsock *:47123 *:*",
        "first unix datagrams /run/stranger",
        "first raw 0.0.0.0:1",
    ],
    "process": [
        "/system.slice/stranger.service /usr/bin/stranger",
        "/system.slice/ssh.service /usr/bin/bash",
        "/init.scope /tmp/stranger",
    ],
}


def inventory(**records: Any) -> Inventory:
    return Inventory({("unit", key): value for key, value in records.items()})


def test_equal_inventories_have_no_findings() -> None:
    one = inventory(a=["x"], b={"c": 1})
    assert compare("node", one, one).findings == ()


@pytest.mark.parametrize(
    ("found", "wanted", "told"),
    [
        ({"a": 1}, {}, ("a", "", "1", None)),
        ({}, {"a": 1}, ("a", "", None, "1")),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}}, ("a", "y", "2", "3")),
        ({"a": {"x": 1}}, {"a": {}}, ("a", "x", "1", None)),
        ({"a": ["r", "s"]}, {"a": ["r", "t"]}, ("a", "", "s", "t")),
        ({"a": ["s", "r"]}, {"a": ["r", "s"]}, ("a", "", "the same in another order", '["r", "s"]')),
        ({"a": ["r", "r"]}, {"a": ["r"]}, ("a", "", "r", "the rest")),
    ],
)
def test_a_difference_names_its_place_and_both_sides(found: Any, wanted: Any, told: tuple[Any, ...]) -> None:
    (only,) = compare("node", inventory(**found), inventory(**wanted)).findings
    assert (only.key, only.property, only.found, only.wanted) == told


def test_a_finding_is_told_with_its_place_both_sides_and_controls() -> None:
    (only,) = compare("node", inventory(a={"x": 1}), inventory(a={})).findings
    assert str(only) == "node: unit a, x: 1, and should be nothing (endangers VMM-04)"


def test_a_gap_hides_no_difference_of_a_later_domain() -> None:
    found = Inventory({("unread", "units "): "it hangs", ("xfrm policy", "x"): 1})
    assert [item.domain for item in compare("node", found, inventory()).findings] == ["xfrm policy"]


def test_a_place_that_cannot_be_read_any_more_is_told() -> None:
    blind = Inventory({("unread", "openflow br-int"): "it hangs"})
    assert compare("node", blind, inventory()).unread == ("node: openflow br-int: it hangs",)
    assert compare("node", blind, blind).unread == ()


def test_a_collector_that_did_not_end_is_told_even_if_it_never_does() -> None:
    blind = Inventory({("unread", "units "): "not done within 60 s"})
    assert blind.unfinished == {"units ": "not done within 60 s"}
    assert compare("node", blind, blind).unread == ("node: units : not done within 60 s",)
    absent = Inventory({("unread", "guests "): "virsh is not installed"})
    assert compare("controller", absent, absent).unread == ()


def test_what_could_not_be_read_is_not_missing() -> None:
    there = Inventory({("sshd", "any port"): ["22"], ("link", "first lo"): {}})
    blind = Inventory({("unread", "sshd "): "it hangs"})
    result = compare("node", blind, there)
    assert [item.domain for item in result.findings] == ["link"]
    assert result.unread == ("node: sshd : it hangs",)


@pytest.mark.parametrize(
    ("unread", "domain"),
    [
        ("link first", "address"),
        ("addressing first", "route"),
        ("openflow br-int", "flow"),
        ("unit ", "unit"),
        ("switch ", "southbound Chassis"),
    ],
)
def test_records_of_a_collector_that_did_not_end_are_unread_and_not_missing(unread: str, domain: str) -> None:
    then, now = Inventory({(domain, "x"): 1}), Inventory({("unread", unread): "not done within 60 s"})
    found = compare("node", now, then)
    assert (found.findings, len(found.unread)) == ((), 1)


@pytest.mark.parametrize(
    ("collector", "modules"),
    [
        ("accounts", ("host/accounts",)),
        ("files", ("host/files", "main")),
        ("guests", ("host/guests",)),
        ("kernel", ("host/kernel",)),
        ("namespaces", ("host/namespaces",)),
        ("network first", ("network/links", "network/filters", "network/sockets")),
        ("processes", ("host/processes",)),
        ("profiles", ("host/confinement",)),
        ("switch", ("network/switch", "network/databases")),
        ("units", ("host/units",)),
    ],
)
def test_every_domain_of_a_collector_that_did_not_end_is_hidden(
    collector: str, modules: tuple[str, ...]
) -> None:
    text = "".join((PAYLOAD / f"{module}.py").read_text() for module in modules)
    domains = set(re.findall(r'records\.add\(\s*"([^"]+)"', text))
    assert domains
    then = Inventory({(domain, "x"): 1 for domain in domains})
    found = compare("node", Inventory({("unread", f"{collector} "): "not done within 60 s"}), then)
    assert [item.domain for item in found.findings] == []


def test_a_part_that_is_never_read_hides_nothing_else() -> None:
    policy = {("unread", "kernel /sys/kernel/security/ima/policy"): "Permission denied"}
    then, now = Inventory({**policy, ("kernel", "version"): 6, ("module", "kvm"): {}}), Inventory(policy)
    assert [item.domain for item in compare("node", now, then).findings] == ["kernel", "module"]


def test_a_place_that_the_reference_lacks_is_unread_and_no_finding() -> None:
    then, now = Inventory({("unread", "guests "): "it hangs"}), Inventory({("guest", "red.web"): []})
    found = compare("node", now, then)
    assert (found.findings, found.unread) == (
        (),
        ("node: guests : it was not read for the reference: it hangs",),
    )


def test_the_list_is_well_formed() -> None:
    names = [line.name for line in load()]
    assert len(names) == len(set(names))
    for line in load():
        assert controls.known(line.domain), line
        assert len(line.reason) >= 20, line
        assert line.blind, line
        assert line.blind <= CONTROLS, line


@pytest.mark.parametrize(
    "path",
    [
        "/var/log/audit/audit.log",
        "/var/log/journal/0123456789abcdef0123456789abcdef/system.journal",
        "/var/log/journal/0123456789abcdef0123456789abcdef/system@x.journal",
        "/var/log/journal/system.journal",
        "/var/log/audit/audit.log.1",
    ],
)
def test_the_content_of_a_log_is_left_out_only_where_it_may_differ(path: str) -> None:
    allowed = [line for line in load() if line.domain == "file" and line.covers(path, "keyed sha256")]
    assert bool(LOGS.fullmatch(path)) == bool(allowed)


def test_the_list_allows_no_stranger() -> None:
    for domain in {line.domain for line in load()}:
        for key in STRANGERS.get(domain, [f"stranger-5f1c{n}" for n in range(3)]):
            assert not [line for line in load() if line.domain == domain and line.covers(key, "")], (
                domain,
                key,
            )


def test_a_part_that_decides_who_may_do_what_is_not_allowed_to_change() -> None:
    sharp = {
        "mode",
        "owner",
        "attributes",
        "type",
        "effective",
        "uids",
        "gids",
        "profile",
        "seccomp",
        "program",
        "actions",
        "by",
        "to",
    }
    wide = [line for line in load() if line.parts & sharp and line.key.fullmatch("stranger-5f1c")]
    assert wide == []


@pytest.mark.parametrize(
    "text",
    ['[[allowed]]\ndomain="unit"\nkey="("\nreason="r"\nblind=[]', '[[allowed]]\ndomain="unit"\nkey="x"'],
)
def test_a_line_that_is_not_well_formed_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "allowed.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"pattern|fields"):
        load(file)


def _domains() -> set[str]:
    """Return every domain that the program's source text records, as far as it is written out."""
    found = set()
    for path in PAYLOAD.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add" and node.args[1:]:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add(first.value)
                elif isinstance(first, ast.JoinedStr) and isinstance(first.values[0], ast.Constant):
                    found.add(str(first.values[0].value).strip())
    return found


def test_every_domain_endangers_a_control_by_an_entry_of_its_own() -> None:
    domains = _domains() | {
        "guest",
        "pool",
        "libvirt network",
        "libvirt filter",
        "host device",
        "guest kept",
        "flow meter",
        "flow group",
        "class",
    }
    assert len(domains) > 45
    assert {domain for domain in domains if not controls.known(domain)} == set()
    assert controls.named() <= CONTROLS


@pytest.mark.parametrize(
    ("domain", "key", "control"),
    [
        ("file", "/etc/ssh/sshd_config", "ACC-02"),
        ("file", "/usr/bin/evil", "VMM-01"),
        ("file", "/var/lib/testbed/images/guest/x", "STO-07"),
        ("file", "/var/lib/testbed/pools/red/x", "STO-01"),
        ("flow", "br-int table 0 x", "NET-01"),
        ("profile", "libvirt-x", "PRC-02"),
        ("listener", "first tcp 0.0.0.0:22", "ACC-02"),
        ("xfrm state", "a b", "NET-08"),
        ("unit", "auditd.service", "AUD-01"),
        ("southbound Chassis", "x", "NET-08"),
        ("nft rules", "x", "NET-09"),
        ("kernel code", "bpf lsm x", "VMM-03"),
        ("kernel code", "bpf at /machine.slice/machine-qemu device", "PRC-04"),
        ("nothing that is known", "x", "VMM-04"),
    ],
)
def test_a_place_endangers_its_control(domain: str, key: str, control: str) -> None:
    assert controls.endangered(domain, key) == {control}


def packed(*lines: str, records: int | None = None) -> bytes:
    head = json.dumps(
        {"format": FORMAT, "records": len(lines) if records is None else records, "seconds": 1.5}
    )
    return zlib.compress("".join(f"{line}\n" for line in (head, *lines)).encode())


RECORD = '{"domain":"unit","key":"a","value":1}'


def test_what_a_machine_prints_is_taken_as_it_is() -> None:
    found = unpack(packed(RECORD, '{"domain":"unread","key":"x ","value":"gone"}'))
    assert found.records == {("unit", "a"): 1, ("unread", "x "): "gone"}
    assert (found.seconds, found.unread, found.domains()) == (1.5, {"x ": "gone"}, {"unit": 1, "unread": 1})


def test_an_inventory_survives_the_way_through_json() -> None:
    one = Inventory({("unit", "b"): {"x": [1]}, ("unit", "a"): None, ("file", "c"): "d"})
    told = json.loads(json.dumps(one.data()))
    assert [(line["domain"], line["key"]) for line in told] == [("file", "c"), ("unit", "a"), ("unit", "b")]
    assert parse(told) == one


@pytest.mark.parametrize(
    "printed",
    [
        b"",
        b"garbage",
        packed(RECORD)[:-4],
        packed(RECORD, RECORD),
        packed(RECORD, records=2),
        packed("[]"),
        packed('{"domain":"a"}'),
        packed('{"domain":1,"key":"a","value":1}'),
        packed('{"domain":"","key":"a","value":1}'),
        packed("{"),
        packed(RECORD, records=-1),
        packed('{"domain":"a","key":"b","value":' + "[" * 40 + "]" * 40 + "}"),
        zlib.compress(b"x" * 40_000_000),
        zlib.compress(b"{}\n"),
        packed('{"domain":"a","key":"b","value":"' + "x" * 200_000 + '"}'),
        packed('{"domain":"a","key":"' + "x" * 3000 + '","value":1}'),
    ],
)
def test_what_is_no_inventory_is_refused(printed: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the reason
        unpack(printed)
