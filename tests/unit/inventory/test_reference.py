"""The reference of a machine: golden reading, identity, and what a lab adds; the rest is a finding."""

from __future__ import annotations

import hashlib
import hmac
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.inventory import controls
from testbed.inventory.compare import domains_of
from testbed.inventory.controls import known
from testbed.inventory.records import Inventory
from testbed.inventory.reference import domains, expected
from testbed.inventory.reference.derive import Origin, derived, normal
from testbed.inventory.reference.judge import AWAKE, Scope, judge
from testbed.model.resolve import resolve
from testbed.plan.host_config.identity import MachineKeys, identity_files, pack
from testbed.topology_file.loader import read

ROOT = Path(__file__).parents[3]
TOPOLOGY = resolve(read(ROOT / "topologies/two-tenants.yaml").spec)
NODE = TOPOLOGY.nodes[0]
KEYS = MachineKeys(b"host key", b"certificate", "authority", b"key", b"tls", b"ca", b"administrators")
KEY = "00" * 32
ORIGIN = Origin(TOPOLOGY, NODE, pack(identity_files(TOPOLOGY, NODE, KEYS)), KEY)
FILE = {"type": "file", "mode": "0644", "owner": "0:0", "newer": True, "size": 1, "names": 1, "sha256": "d"}
AWAKE_FILE = FILE | {"size": 37}
# Keys that stand near what is expected, on top of which nothing may be.
FOREIGN = {
    "address": "management0 203.0.113.9/24",
    "listener": "tcp 0.0.0.0:23",
    "mount": "/usr/sbin",
    "setting": "net/ipv4/conf/undeclared0/forwarding",
}
LINES = """
[[expected]]
domain = "file"
key = '/run/a\\.pid'
roles = ["node"]
has = { mode = "0644", owner = "0:0", type = "file" }
reason = "a service writes its number"
blind = []

[[expected]]
domain = "file"
key = '/etc/machine-id'
parts = ["sha256"]
reason = "each machine has its own"
blind = []

[[expected]]
domain = "file"
key = '/run/nologin'
gone = true
reason = "logins are allowed at the end of the boot"
blind = []

[[expected]]
domain = "kernel"
key = 'swap'
parts = ["value"]
has = { value = "off" }
reason = "a value that is no object"
blind = []
"""


@pytest.fixture
def lines(tmp_path: Path) -> tuple[expected.Expected, ...]:
    file = tmp_path / "expected.toml"
    file.write_text(LINES)
    return expected.load(file=file)


def _found(lines: tuple[expected.Expected, ...], golden: dict, found: dict) -> list[str]:
    base = {**derived(ORIGIN, {}, {}), AWAKE: AWAKE_FILE}
    golden = {AWAKE: AWAKE_FILE, **golden}
    judged = judge(ORIGIN, Inventory({**base, **found}), Inventory(golden), lines, ())
    return [f"{item.domain} {item.key} {item.property}".strip() for item in judged.comparison.findings]


def test_the_golden_reading_with_the_identity_has_no_finding(lines: tuple[expected.Expected, ...]) -> None:
    golden = {("account", "root"): ["0"], ("file", "/etc/x"): FILE}
    assert _found(lines, golden, dict(golden)) == []


def test_a_record_more_less_or_other_is_a_finding(lines: tuple[expected.Expected, ...]) -> None:
    golden = {("account", "root"): ["0"], ("account", "man"): ["6"]}
    found = {("account", "root"): ["0", "x"], ("account", "evil"): ["0"]}
    assert _found(lines, golden, found) == ["account evil", "account man", "account root"]


@pytest.mark.parametrize("change", [{"mode": "0666"}, {"owner": "7:0"}, {"type": "link"}])
def test_an_expected_file_has_the_expected_properties(
    lines: tuple[expected.Expected, ...], change: dict[str, str]
) -> None:
    assert _found(lines, {}, {("file", "/run/a.pid"): FILE}) == []
    assert _found(lines, {}, {("file", "/run/a.pid"): FILE | change}) == ["file /run/a.pid"]
    assert _found(lines, {}, {("file", "/run/aXpid"): FILE}) == ["file /run/aXpid"]


def test_what_a_line_expects_of_one_role_is_a_finding_on_another(
    lines: tuple[expected.Expected, ...],
) -> None:
    granted, _ = expected.grant({("file", "/run/a.pid"): FILE}, {}, lines, "controller")
    assert granted == {}


def test_only_the_named_parts_may_differ(lines: tuple[expected.Expected, ...]) -> None:
    golden = {("file", "/etc/machine-id"): FILE}
    assert _found(lines, golden, {("file", "/etc/machine-id"): FILE | {"sha256": "e"}}) == []
    changed = FILE | {"sha256": "e", "mode": "0666"}
    assert _found(lines, golden, {("file", "/etc/machine-id"): changed}) == ["file /etc/machine-id mode"]
    assert _found(lines, {}, {("file", "/etc/machine-id"): FILE}) == ["file /etc/machine-id"]


def test_a_record_may_go_only_if_a_line_says_so(lines: tuple[expected.Expected, ...]) -> None:
    assert _found(lines, {("file", "/run/nologin"): FILE}, {}) == []
    assert _found(lines, {("file", "/run/login"): FILE}, {}) == ["file /run/login"]


def test_a_value_that_is_no_object_is_checked_too(lines: tuple[expected.Expected, ...]) -> None:
    golden = {("kernel", "swap"): "on"}
    assert _found(lines, golden, {("kernel", "swap"): "off"}) == []
    assert _found(lines, golden, {("kernel", "swap"): "other"}) == ["kernel swap"]


def test_the_identity_that_was_handed_over_is_known_to_the_last_octet() -> None:
    records = derived(ORIGIN, {}, {})
    public = records["file", "/run/testbed/hostname"]
    name = f"{NODE.name}\n".encode()
    assert public == FILE | {"size": len(name), "sha256": hashlib.sha256(name).hexdigest()}
    private = records["file", "/run/testbed/ssh/host_key"]
    assert private["keyed sha256"] == hmac.new(bytes(32), b"host key", "sha256").hexdigest()
    assert private["mode"] == "0600"
    assert records["file", "/run/testbed/ssh"] == {
        "type": "folder",
        "mode": "0755",
        "owner": "0:0",
        "newer": True,
    }


def test_a_file_that_others_may_not_read_is_private(tmp_path: Path) -> None:
    file = tmp_path / "identity.tar"
    file.write_bytes(ORIGIN.identity)
    with tarfile.open(file, "a") as archive:
        for mode in (0o711, 0o604):
            entry = tarfile.TarInfo(f"testbed/{mode:o}")
            entry.mode = mode
            archive.addfile(entry)
    records = derived(replace(ORIGIN, identity=file.read_bytes()), {}, {})
    assert "keyed sha256" in records["file", "/run/testbed/711"]
    assert "keyed sha256" not in records["file", "/run/testbed/604"]


def test_names_of_the_machine_come_from_the_identity() -> None:
    assert f"127.0.1.1 {NODE.name}" in derived(ORIGIN, {}, {})["access file", "/etc/hosts"]


def test_a_file_of_the_identity_that_was_changed_is_a_finding(lines: tuple[expected.Expected, ...]) -> None:
    at = ("file", "/run/testbed/hosts")
    changed = derived(ORIGIN, {}, {})[at] | {"sha256": "other"}
    assert _found(lines, {}, {at: changed}) == ["file /run/testbed/hosts sha256"]


def test_the_digest_of_names_says_nothing_more_in_memory_and_counts_on_disks() -> None:
    folder = {"type": "folder", "entries": "e"}
    found = normal({("file", "/run/x"): folder, ("file", "/etc"): folder, ("file", "/running"): folder})
    assert found["file", "/run/x"] == {"type": "folder"}
    assert found["file", "/etc"] == folder
    assert found["file", "/running"] == folder


def _watch(*pairs: tuple[str, str]) -> dict[tuple[str, str], object]:
    """Return records of links of udev's folder of watches, each with its target."""
    return {("file", f"/run/udev/watch/{name}"): {"type": "link", "to": to} for name, to in pairs}


def test_the_number_of_a_watch_of_udev_says_nothing_and_everything_else_of_it_does() -> None:
    """An event of the device gives it another number; STO-08 lets the node look at its devices."""
    golden = normal(_watch(("b254:0", "1"), ("1", "b254:0"), ("b254:16", "2"), ("2", "b254:16")))
    assert normal(_watch(("b254:16", "7"), ("7", "b254:16"), ("b254:0", "9"), ("9", "b254:0"))) == golden
    for other in (
        (("b254:0", "1"), ("1", "b254:16")),
        (("b254:0", "/etc/passwd"), ("1", "b254:0")),
        (("b254:0", "1"), ("1", "b254:0"), ("3", "b254:0")),
        (("x", "1"), ("1", "x")),
    ):
        found = normal(_watch(*other, ("b254:16", "2"), ("2", "b254:16")))
        assert found != golden
        assert any(key.endswith(("/1", "/3")) for _, key in found)


def test_a_change_that_was_taken_back_is_no_finding_and_another_is(
    lines: tuple[expected.Expected, ...],
) -> None:
    """The inode stays newer than the image; the golden reading knows what folders and programs hold."""
    at = ("file", "/usr/sbin/nft")
    golden = {("image file", "/usr/sbin/nft"): FILE | {"newer": False}}
    assert _found(lines, golden, {at: FILE}) == []
    assert _found(lines, golden, {at: FILE | {"sha256": "e"}}) == ["file /usr/sbin/nft"]
    assert _found(lines, {}, {at: FILE}) == ["file /usr/sbin/nft"]
    large = {name: item for name, item in FILE.items() if name != "sha256"} | {"unread": "it is large"}
    golden = {("image file", "/usr/sbin/nft"): large | {"newer": False}}
    assert _found(lines, golden, {at: large}) == ["file /usr/sbin/nft"]


def test_a_gap_counts_only_in_a_judged_domain(lines: tuple[expected.Expected, ...]) -> None:
    gap = {("unread", "account "): "hangs", ("unread", "northbound "): "hangs"}
    judged = judge(
        ORIGIN, Inventory({**derived(ORIGIN, {}, {}), AWAKE: AWAKE_FILE, **gap}), Inventory({}), lines, ()
    )
    assert [text.split(": ")[1] for text in judged.comparison.unread] == ["account "]


def test_every_domain_is_judged_or_has_a_reason_why_it_is_not() -> None:
    assert not set(domains.JUDGED) & set(domains.NOT_JUDGED)
    assert all({**domains.JUDGED, **domains.NOT_JUDGED}.values())
    assert all(known(name) for name in {*domains.JUDGED, *domains.NOT_JUDGED})
    assert [name for name in controls.domains() if domains.judged(name) == bool(domains.why_not(name))] == []


@pytest.mark.parametrize("domain", sorted(domains.JUDGED))
def test_a_foreign_record_of_each_judged_domain_is_found_under_its_control(domain: str) -> None:
    """With the list that is really used, on each role."""
    for machine in (TOPOLOGY.controller, NODE):
        origin = Origin(TOPOLOGY, machine, pack(identity_files(TOPOLOGY, machine, KEYS)), KEY)
        lines = expected.load(expected.words_of(TOPOLOGY, machine))
        clean = {**derived(origin, {}, {}), AWAKE: AWAKE_FILE}
        for key, value in (("undeclared", {"undeclared": "1"}), (f"first {FOREIGN.get(domain, 'x')}", "1")):
            found = Inventory({**clean, (domain, key): value})
            (finding,) = judge(origin, found, Inventory({}), lines, ()).comparison.findings
            assert (finding.domain, finding.key, finding.found is None) == (domain, key, False)
            assert finding.controls == controls.endangered(domain, key)


def test_a_line_needs_four_fields_and_is_about_every_role(tmp_path: Path) -> None:
    file = tmp_path / "expected.toml"
    text = ["[[expected]]", 'domain = "unit"', 'key = "x"', 'reason = "r"', "blind = []"]
    file.write_text("\n".join(text))
    (line,) = expected.load(file=file)
    assert (line.roles, line.parts, line.gone, line.fits("x", {})) == (
        ("node", "controller"),
        set(),
        False,
        True,
    )
    for missing in range(1, len(text)):
        file.write_text("\n".join(text[:missing] + text[missing + 1 :]))
        with pytest.raises(ValueError, match="other fields"):
            expected.load(file=file)


@pytest.mark.parametrize("broken", ["key = '('", "other = 1"])
def test_a_broken_line_is_refused(tmp_path: Path, broken: str) -> None:
    file = tmp_path / "expected.toml"
    file.write_text(LINES.replace('domain = "kernel"', broken))
    with pytest.raises(ValueError, match=r"expected|pattern|fields|duplicate|overwrite"):
        expected.load(file=file)


def test_places_of_a_collector_are_about_all_of_its_domains() -> None:
    assert {"account", "group", "sshd"} <= domains_of("accounts ", ())
    assert domains_of("switch ", {"switch Port", "link"}) >= {"switch Port", "flow"}


PROGRAM = ("file", "/usr/local/bin/undeclared")
LEFT = ("file", "/var/lib/undeclared")


@pytest.mark.parametrize(
    ("scope", "at", "counts"),
    [
        (Scope.WHOLE, LEFT, True),
        (Scope.WHOLE, ("module", "undeclared"), True),
        (Scope.PROGRAMS, PROGRAM, True),
        (Scope.PROGRAMS, ("file", "/run/systemd/system/undeclared.service"), True),
        (Scope.PROGRAMS, LEFT, False),
        (Scope.CODE, PROGRAM, False),
        (Scope.CODE, ("kernel code", "bpf lsm undeclared"), True),
        (Scope.PROGRAMS, ("module", "undeclared"), False),
    ],
)
def test_where_breaches_were_tried_only_programs_are_judged(
    scope: Scope, at: tuple[str, str], counts: bool
) -> None:
    found = Inventory({**derived(ORIGIN, {}, {}), AWAKE: AWAKE_FILE, at: FILE})
    judged = judge(ORIGIN, found, Inventory({AWAKE: AWAKE_FILE}), (), (), scope=scope)
    assert [(item.domain, item.key) for item in judged.comparison.findings] == [at] * counts


def test_of_a_machine_that_has_booted_only_programs_on_disk_are_judged() -> None:
    runs = ("file", "/run/systemd/system/undeclared.service")
    judged = judge(ORIGIN, Inventory({PROGRAM: FILE, LEFT: FILE, runs: FILE}), Inventory({}), (), ())
    assert judged.scope is Scope.REBOOTED
    assert [(item.domain, item.key) for item in judged.comparison.findings] == [PROGRAM]


def test_libvirt_may_note_what_other_emulators_can_do_and_change_nothing_of_ours() -> None:
    """`virsh capabilities` probes all of them, and writes a file for each."""
    lines = expected.load(expected.words_of(TOPOLOGY, NODE))
    at = "/var/cache/libvirt/qemu/capabilities"
    folder = {"entries": "7dbd46f8a09ba8fa", "mode": "0755", "newer": True, "owner": "0:0", "type": "folder"}
    file = {"keyed sha256": "56", "mode": "0600", "names": 1, "newer": True, "owner": "0:0", "type": "file"}
    ours, other = ("file", f"{at}/{'9' * 64}.xml"), ("file", f"{at}/{'f' * 64}.xml")
    golden = {("file", at): folder, ours: file}
    noted = {("file", at): folder | {"entries": "131fb967910906b5"}, ours: file, other: file}
    assert _found(lines, golden, noted) == []
    assert _found(lines, golden, noted | {other: file | {"mode": "0666"}}) == [" ".join(other)]
    assert _found(lines, golden, noted | {ours: file | {"keyed sha256": "57"}}) == [
        f"file {ours[1]} keyed sha256"
    ]


@pytest.mark.parametrize("key", ["(the only row)", "706bc57dbe5cc354", "706bc57dbe5cc354 #2"])
def test_limits_of_connections_are_expected_whatever_their_number(key: str) -> None:
    """A row that is alone in its table has no digest for a name."""
    lines = expected.load(expected.words_of(TOPOLOGY, NODE))
    row = {"external_ids": {}, "limit": 256, "timeout_policy": []}
    assert _found(lines, {}, {("switch CT_Zone", key): row}) == []
    assert _found(lines, {}, {("switch CT_Zone", key): row | {"limit": 0}}) == [f"switch CT_Zone {key}"]
