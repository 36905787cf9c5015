"""The sources of settings: the output of nft, tc, ip, Open vSwitch and the kernel."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

from testbed.model.topology import LOGS, Guest
from testbed.plan.host_config import parsers
from testbed.plan.host_config.settings import KERNEL, Setting, settings
from tests.shapes import lab_of

SETS = """\tset peers {{
\t\ttype ipv4_addr
\t\telements = {{ {elements} }}
\t}}

\tset nobody {{
\t\ttype ipv4_addr
\t}}

"""
CHAIN = """\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t\tip saddr @peers accept
\t\tcounter drop
\t}
"""


def _table(name: str, body: str) -> str:
    return f"table {name} {{\n{body}}}\n"


FILE = _table("inet testbed", SETS.format(elements="198.18.1.1") + CHAIN)
LIVE = _table("inet testbed", SETS.format(elements="198.18.1.3,\n\t\t\t     198.18.1.2") + CHAIN)


def _files(**contents: str) -> str:
    """Return lines of files as printed; names have two underscores for each slash."""
    named = {f"/{name.replace('__', '/')}": text for name, text in contents.items()}
    return "\n".join(f"{name}:{line}" for name, text in named.items() for line in text.splitlines())


COMMENTED = FILE.replace("\tchain input", "\t# what comes in: a comment\n\n\tchain input").replace(
    "{\n", "{\n# first\n", 1
)
FILES = "\n".join(
    f"/etc/nftables.conf:{line}"
    for line in f"table inet testbed\ndelete table inet testbed\n{COMMENTED}".splitlines()
)
firewall = partial(
    parsers.firewall, files=FILES, table="inet testbed", others=frozenset({"netdev neighbours"})
)


def test_a_firewall_is_its_file_whatever_its_sets_hold() -> None:
    assert firewall(LIVE) == "as in the file\n3\ntable inet testbed"
    assert firewall(_table("netdev neighbours", CHAIN) + LIVE) == firewall(LIVE)


@pytest.mark.parametrize("live", [
    LIVE.replace("policy drop", "policy accept"),
    LIVE.replace("\t\tcounter drop\n", ""),
    LIVE.replace("table inet testbed {\n", "table inet testbed {\n\tflags dormant\n"),
    LIVE + _table("ip mine", CHAIN),
    LIVE.replace("\tset nobody {\n\t\ttype ipv4_addr\n\t}\n", "\tchain nobody {\n\t\taccept\n\t}\n"),
    "",
    "nft: command not found",
])  # fmt: skip
def test_a_firewall_that_is_not_its_file_is_told(live: str) -> None:
    assert firewall(live) != firewall(LIVE)


def test_the_elements_of_a_set_are_sorted_and_those_of_another_table_are_not_ours() -> None:
    other = _table("ip testbed", SETS.format(elements="192.0.2.1"))
    assert parsers.addresses(other + LIVE, "inet testbed", "peers") == "198.18.1.2\n198.18.1.3"
    assert parsers.addresses(LIVE, "inet testbed", "nobody") == ""
    assert parsers.addresses("", "inet testbed", "peers") == ""


def test_pairs_of_a_guard_are_read_quoted_or_not() -> None:
    held = '\tset links {\n\t\telements = { "tapb2" . 0xa0000000002,\n\t\t\t     tapa1 . fd00::3 }\n\t}\n'
    assert (
        parsers.pairs(_table("netdev neighbours", held), "netdev neighbours", "links")
        == "tapa1 . fd00::3\ntapb2 . 0xa0000000002"
    )


def test_a_policy_that_is_not_esp_in_transport_mode_stands_as_it_is() -> None:
    policy = (
        r"src 198.18.1.2/32 dst 198.18.1.3/32 proto udp \ dir out priority 3 ptype main \ tmpl src 0.0.0.0 "
        r"dst 0.0.0.0\ "
    )
    good, socket = (
        policy + r"proto esp reqid 1 mode transport\ ",
        r"src ::/0 dst ::/0 \ socket in priority 0 ptype main \ ",
    )
    back = (
        good.replace("dir out", "dir in")
        .replace("198.18.1.2", "x")
        .replace("198.18.1.3", "198.18.1.2")
        .replace("x", "198.18.1.3")
    )
    read = partial(parsers.protection, own="198.18.1.2", peers=["198.18.1.3"])
    assert read(f"{good}\n{socket}\n{back}\n") == parsers.PROTECTED
    assert read(good) == "missing: in 198.18.1.3/32 198.18.1.2/32 esp"
    for weak in (
        good.replace("transport", "tunnel"),
        good.replace("proto esp", "proto ah"),
        r"src 0/0 dst 0/0 \ dir out action allow",
        good.replace(
            "mode transport", "mode transport level use"
        ),  # ESP where the peer happens to have a key
        good.replace("dir out", "dir out action allow"),
        good + r"tmpl src 0.0.0.0 dst 0.0.0.0\ proto ah reqid 1 mode transport\ ",
    ):
        assert read(f"{good}\n{back}\n{weak}") == f"not declared: {weak}"
    for narrow in (good.replace("proto udp", "proto udp dport 9"), good.replace("proto udp", "proto tcp")):
        assert read(f"{narrow}\n{back}") == (
            f"missing: out 198.18.1.2/32 198.18.1.3/32 esp\nnot declared: {narrow}"
        )


def test_policies_are_read_as_a_kernel_prints_them() -> None:
    printed = (
        "src 198.18.1.118/32 dst 198.18.1.79/32 proto udp \\\tdir out priority 366975 ptype main \\\t"
        "tmpl src 0.0.0.0 dst 0.0.0.0\\\t\tproto esp spi 0xce36c09c reqid 1 mode transport\\\n"
        "src 198.18.1.79/32 dst 198.18.1.118/32 proto udp \\\tdir in priority 366975 ptype main \\\ttmpl src "
        "0.0.0.0 dst 0.0.0.0\\\t\tproto esp reqid 1 mode transport\\\n"
        "src ::/0 dst ::/0 \\\tsocket in priority 0 ptype main \\\n"
    )
    assert parsers.protection(printed, own="198.18.1.118", peers=["198.18.1.79"]) == parsers.PROTECTED


@pytest.mark.parametrize(("own", "flags", "value"), [
    ("", "0x1102", "0\n0"),
    ("5: br-int inet 192.0.2.1/24", "0x1103", "1\n1"),
    ("", "gone", "0\n1"),
    ("", "", "0\n1"),
])  # fmt: skip
def test_a_bridge_is_down_and_has_no_address(own: str, flags: str, value: str) -> None:
    assert parsers.bridge(own, f"/sys/class/net/br-int/flags:{flags}") == value


def test_a_rule_that_delivers_at_once_is_counted() -> None:
    own = (
        " cookie=0x1, table=0, priority=100,in_port=2 actions=set_field:0x1->reg13,resubmit(,8)\n "
        "cookie=0x0, priority=0 actions=drop\n"
    )
    assert parsers.delivering(f"OFPST_FLOW reply (OF1.5) (xid=0x6):\n{own}") == "0"
    for actions in (
        "output:3",
        "output:9,resubmit(,8)",
        "resubmit(,8),9",
        "NORMAL",
        "resubmit(3,8)",
        "clone(drop)",
    ):
        assert parsers.delivering(f"{own} cookie=0x0, priority=9 actions={actions}\n") == "1"


def _switch(mirrors: list[str], interfaces: dict[str, str]) -> str:
    rows = [[name, ["map", [["iface-id", port]] if port else []]] for name, port in interfaces.items()]
    tables = (
        {"data": [[name] for name in mirrors], "headings": ["name"]},
        {"data": rows, "headings": ["name", "external_ids"]},
    )
    return "\n".join(map(json.dumps, tables))


POLICER = (
    "interface tap1\nfilter protocol all pref 1 matchall chain 0\n\taction order 1:  police 0x1 rate 0bit\n"
)


def test_policers_are_all_that_may_act_on_frames() -> None:
    clean = _switch([], {"br-int": ""})
    assert parsers.mirrors(POLICER, clean, LIVE) == ""
    assert (
        parsers.mirrors(
            f"{POLICER}\taction order 1: mirred (Egress Mirror to device tap2) pipe\n", clean, LIVE
        )
        != ""
    )
    named = "\taction order 1: mirred (Egress Mirror to device police0) pipe\n"
    assert parsers.mirrors(f"{POLICER}{named}", clean, LIVE) == named.strip()
    assert parsers.mirrors(POLICER, _switch(["m0"], {"br-int": ""}), LIVE) == "m0"
    for rule in ('dup to "tap2"', 'ip daddr 192.0.2.1 fwd to "tap2"'):
        assert parsers.mirrors(POLICER, clean, LIVE.replace("counter drop", rule)) == rule


def test_a_port_is_claimed_by_its_own_interface_only() -> None:
    own = frozenset({("tap1", "port-1")})
    assert parsers.claims(_switch([], {"br-int": "", "tap1": "port-1"}), own) == ""
    assert (
        parsers.claims(_switch([], {"tap1": "port-1", "evil": "port-1", "tap2": "port-2"}), own)
        == "evil port-1\ntap2 port-2"
    )


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "ovs-vsctl: database connection failed",
        "[]",
        "3",
        '{"headings": ["name"]}',
        '{"data": [], "headings": []}',
    ],
)
def test_what_makes_no_sense_is_never_the_wanted_value(printed: str) -> None:
    claims = Setting("claims", "NET-13", ("ask",), "", "", partial(parsers.claims, own=frozenset()))
    mirrors = Setting("mirrors", "NET-11", ("filters", "ask", "ruleset"), "", "", parsers.mirrors)
    assert claims.reading({"ask": printed}).startswith("unreadable")
    assert mirrors.reading({"filters": "", "ask": printed, "ruleset": ""}).startswith("unreadable")


def test_only_an_enforced_profile_of_libvirt_confines() -> None:
    good = "libvirt-7b824954-c274-567c-8272-b370fed28306 (enforce)"
    assert parsers.unconfined(f"{good}\n{good}") == ""
    bad = ["unconfined", "libvirt-7b824954 (complain)", "libvirtd (enforce)", f"x{good}", "none"]
    assert parsers.unconfined("\n".join((good, *bad[:-1], "", good))).splitlines() == bad


def test_files_are_found_by_folder_and_by_name() -> None:
    files = (
        "/etc/ssh\n/etc/ssh/sshd_config.d\n/etc/ssh/sshd_config.d/evil.conf\n/root/.ssh/authorized_keys2\n"
        "/etc/ssh/moduli"
    )
    assert parsers.beneath(files, "/etc/ssh/sshd_config.d") == "/etc/ssh/sshd_config.d/evil.conf"
    assert parsers.called(files, "authorized_keys") == "/root/.ssh/authorized_keys2"


def test_members_of_a_group() -> None:
    other = "root:x:0:\nlibvirt-qemu:x:64055:mallory\nkvm:x:9:worker00"
    assert [
        parsers.members(_files(etc__group=f"{other}\n{line}"), "libvirt")
        for line in ("libvirt:x:105:", "libvirt:x:105:eve,mallory")
    ] == ["", "eve,mallory"]
    assert parsers.members(_files(etc__group=other), "kvm") == "worker00"
    with pytest.raises(LookupError):
        parsers.members(_files(etc__group=other), "libvirt")


def test_what_is_added_to_every_profile() -> None:
    local, more = (
        "etc__apparmor.d__local__abstractions__libvirt-qemu",
        "etc__apparmor.d__abstractions__libvirt-qemu.d__x",
    )
    assert parsers.additions(_files(**{local: "# a comment\n  /dev/sda rw,"})) == "/dev/sda rw,"
    assert parsers.additions(_files(**{local: "# a comment", more: "/dev/sdb r,"})) == "/dev/sdb r,"
    assert parsers.additions(_files(**{local: "# a comment"})) == ""


def test_lines_of_files_of_a_folder_and_of_one_file() -> None:
    files = _files(etc__a="1: x\n", etc__ab="2", etc__b__c="3\n4", etc__b__d="5")
    assert parsers.lines(files, "/etc/b/") == "3\n4\n5"
    assert parsers.lines(files, "/etc/a:") == "1: x"
    assert parsers.lines(files, "/gone") == ""
    assert parsers.lines("/etc/a:x\x0by\rz\n/etc/b:2", "/etc/a:") == "x\x0by\rz"


def test_names_and_values_of_the_kernels_settings() -> None:
    names = "\n".join(f"/proc/sys/{name}:{value}" for name, value in KERNEL.items())
    assert parsers.kernel(f"{names}\n/etc/group:x").splitlines() == [
        f"{name} {value}" for name, value in KERNEL.items()
    ]


def test_modes_of_some_files_only() -> None:
    printed = "/run/a 600 root:root\n/run/ab 666 root:root\n/images/guest/x 444 root:root\nstat: cannot stat"
    assert parsers.modes(printed, of=("/run/a", "/run/gone")) == "/run/a 600 root:root"


def test_the_last_of_several_mounts_counts() -> None:
    mounts = _files(proc__self__mounts="/dev/vda / ext4 rw 0 0\n/dev/vdb /images ext4 ro,nosuid 0 0")
    modes = "/images/guest/a 444 root\n/images/guest/b 444 root\n/run/socket 600 eve"
    assert parsers.read_only(mounts, modes, "/images") == "ro\n444 root"
    again = f"{mounts}\n{_files(proc__self__mounts='tmpfs /images tmpfs rw 0 0')}"
    assert (
        parsers.read_only(again, modes.replace("b 444 root", "b 644 eve"), "/images")
        == "rw\n444 root\n644 eve"
    )
    assert parsers.read_only("", modes, "/images") == "444 root"


def test_services_are_told_by_name() -> None:
    assert (
        parsers.services("active\nfailed\nbr-int", ("one", "two"))
        == "one active\ntwo failed\nbr-int is there"
    )
    assert parsers.services("active\nactive", ("one", "two")) == "one active\ntwo active\nbr-int is not there"
    with pytest.raises(ValueError, match="zip"):
        parsers.services("active", ("one", "two"))


def test_a_firewall_that_is_not_its_file_says_which_rules_differ() -> None:
    told = firewall(LIVE.replace("\t\tcounter drop\n", "\t\tip saddr 192.0.2.1 accept\n")).splitlines()[0]
    assert told == "not as in the file; too many: ip saddr 192.0.2.1 accept; missing: counter drop"


def test_files_that_belong_to_no_guest_of_a_node_are_its_records() -> None:
    """RES-02: logs of each kind and profiles are known by domain and UUID; rotated logs count as logs."""
    lab = lab_of("two-tenants")
    setting = {item.name: item for item in settings(lab, lab.nodes[0])}["guest-records"]
    here, elsewhere = (lab.guests_on(node.name)[0] for node in lab.nodes)

    def kept(guest: Guest) -> list[str]:
        logs = (f"{LOGS}/{guest.domain}{end}" for end in (".log", ".console.log", ".console.log.0"))
        profile = f"/etc/apparmor.d/libvirt/libvirt-{guest.uuid}"
        return sorted((*logs, profile, f"{profile}.files"))

    always = [f"{LOGS}/.placeholder", "/etc/apparmor.d/libvirt/TEMPLATE.qemu"]
    (listing,) = setting.observe
    assert setting.reading({listing: "\n".join((*always, *kept(here)))}) == ""
    assert setting.reading({listing: "\n".join((*always, *kept(elsewhere)))}).split() == kept(elsewhere)
    assert setting.reading({listing: f"{LOGS}/{here.domain.replace('.', 'x')}.log"}) != ""


def test_the_repair_of_records_removes_files_of_strangers_only(tmp_path: Path) -> None:
    lab = lab_of("one-node")
    setting = {item.name: item for item in settings(lab, lab.nodes[0])}["guest-records"]
    kept = (".placeholder", f"{lab.guests[0].domain}.log", f"{lab.guests[0].domain}.console.log.1")
    (tmp_path / "logs").mkdir()
    (tmp_path / "profiles").mkdir()
    victim = tmp_path / "victim"
    victim.touch()
    for name in (*kept, "red.gone.log", f"x\n{victim}"):
        path = tmp_path / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    repair = setting.repair.replace(LOGS, f"{tmp_path}/logs").replace(
        "/etc/apparmor.d/libvirt", f"{tmp_path}/profiles"
    )
    subprocess.run(["sh", "-c", repair], check=True)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == sorted(kept)
    assert victim.exists()


def test_the_last_mount_on_a_folder_counts() -> None:
    lines = (
        "/proc/self/mounts:tmpfs /var/lib/libvirt/qemu tmpfs rw 0 0",
        "/proc/self/mounts:/dev/vda /var/lib/libvirt/qemu ext4 rw 0 0",
    )
    folder = "/var/lib/libvirt/qemu"
    assert parsers.mounted(lines[0], folder) == "tmpfs"
    assert parsers.mounted("\n".join(lines), folder) == "ext4"
    assert parsers.mounted(lines[0], "/var/lib/libvirt") == "none"
