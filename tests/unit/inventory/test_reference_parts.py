"""Parts of the reference of a machine that are computed: mounts, networks, settings, idle units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.inventory.reference import expected
from testbed.inventory.reference.mounts import parts
from testbed.inventory.reference.network import network, settings
from testbed.inventory.reference.units import idle
from testbed.model.resolve import resolve
from testbed.model.topology import Plane
from testbed.topology_file.loader import read

ROOT = Path(__file__).parents[3]
TOPOLOGY = resolve(read(ROOT / "topologies/two-tenants.yaml").spec)
NODE = TOPOLOGY.nodes[0]
ROOT_FS = {"type": "ext4", "from": "/dev/vda", "root": "/", "options": "rw"}
RUN = {"type": "tmpfs", "from": "tmpfs", "root": "/", "options": "rw"}
FIRST_MOUNTS = {("mount", "first /"): [ROOT_FS], ("mount", "first /run"): [RUN]}
WORKER = r"mnt of machine.slice/machine-qemu\x2dN\x2dred.web.scope/libvirt/emulator"


@pytest.mark.parametrize(
    ("key", "mount", "is_part"),
    [
        ("mnt of system.slice/a.service /etc", ROOT_FS | {"root": "/etc", "options": "ro"}, True),
        ("mnt of system.slice/a.service /run/x", RUN | {"root": "/x"}, True),
        ("mnt of system.slice/a.service /proc/kmsg", RUN | {"root": "/systemd/inaccessible/reg"}, True),
        ("mnt of system.slice/a.service /run/systemd/incoming",
         RUN | {"root": "/systemd/propagate/a.service"}, True),
        (f"{WORKER} /dev", RUN | {"from": "devfs"}, True),
        (f"{WORKER} /usr/lib/libfoo.so", RUN | {"root": "/libfoo.so"}, False),
        (f"{WORKER} /usr/sbin", ROOT_FS | {"root": "/var/tmp"}, False),
        (f"{WORKER} /mnt", ROOT_FS | {"from": "/dev/vdz"}, False),
        ("mnt of user.slice/x /etc", ROOT_FS | {"root": "/etc"}, False),
        ("first /usr/sbin", ROOT_FS | {"root": "/usr/sbin"}, False),
    ],
)  # fmt: skip
def test_services_and_workers_see_parts_of_the_first_namespace_at_their_places(
    key: str, mount: dict[str, str], is_part: bool
) -> None:
    assert bool(parts({("mount", key): [mount]}, FIRST_MOUNTS)) == is_part
    assert not parts({("mount", key): [mount, {"type": "ext4"}]}, FIRST_MOUNTS)
    assert not parts({("mount", key): [mount, "odd"]}, FIRST_MOUNTS)


def test_records_of_other_domains_are_no_mounts() -> None:
    mount = ROOT_FS | {"root": "/etc"}
    others = {("device", "first /"): [ROOT_FS], ("setting", "first kernel/hostname"): 6}
    assert not parts({("mount", "mnt of system.slice/a.service /etc"): [mount]}, others)


def test_interfaces_of_the_topology_have_the_settings_of_new_ones() -> None:
    golden = {
        ("setting", "first net/ipv4/conf/default/forwarding"): "0",
        ("setting", "first net/ipv6/conf/default/accept_ra"): "1",
    }
    found = {
        ("setting", f"first net/{path}"): "any"
        for path in ("ipv4/conf/fabric0/forwarding", "ipv6/conf/fabric0/accept_ra", "ipv4/conf/x0/forwarding")
    }
    wanted = settings(TOPOLOGY, NODE, golden, found)
    assert wanted == {
        ("setting", "first kernel/hostname"): NODE.name,
        ("setting", "first net/ipv4/conf/fabric0/forwarding"): "0",
        ("setting", "first net/ipv6/conf/fabric0/accept_ra"): "0",
    }


def test_the_rule_of_strongswan_is_asked_for_only_where_there_are_tunnels() -> None:
    rules = [key for domain, key in network(TOPOLOGY, NODE) if domain == "rule"]
    assert rules == ["first -4 220 all", "first -6 220 all"]
    alone = resolve(read(ROOT / "topologies/one-node.yaml").spec)
    assert not [key for domain, key in network(alone, alone.nodes[0]) if domain == "rule"]
    assert not [key for domain, key in network(TOPOLOGY, TOPOLOGY.controller) if domain == "rule"]


def test_addresses_and_routes_follow_from_the_topology() -> None:
    (nic,) = TOPOLOGY.controller.nics
    found = network(TOPOLOGY, TOPOLOGY.controller)
    prefix = TOPOLOGY.lab_network(nic.plane).network.prefixlen
    assert {key for domain, key in found if domain == "address"} == {
        f"first management0 {nic.address}/{prefix}"
    }
    assert sum(domain == "route" for domain, _ in found) == 3
    route = found["route", f"first local {nic.address} local management0"]
    assert (route["dev"], route["prefsrc"], route["scope"]) == ("management0", str(nic.address), "host")


@pytest.mark.parametrize(
    ("unit", "is_idle"),
    [
        ({"states": "loaded inactive", "files": ["/usr/lib/systemd/system/a.service"]}, True),
        ({"states": "not-found inactive"}, True),
        ({"states": "loaded active", "files": ["/usr/lib/systemd/system/a.service"]}, False),
        ({"states": "loaded inactive", "files": ["/run/systemd/system/b.service"]}, False),
        ({"states": "loaded inactive", "files": [], "changed since the manager read them": ["x"]}, False),
    ],
)
def test_units_of_the_image_may_be_loaded_but_not_run(unit: dict[str, Any], is_idle: bool) -> None:
    golden = {("unit file", "a.service"): ["/usr/lib/systemd/system/a.service"]}
    assert bool(idle({("unit", "a.service"): unit}, golden)) == is_idle
    assert not idle({("unit", "a.service"): unit}, {**golden, ("unit", "a.service"): {"states": "other"}})


@pytest.mark.parametrize("size", ["16384", "32768"])
def test_a_namespace_shows_the_size_of_tables_that_depend_on_memory_as_a_negative_number(size: str) -> None:
    table = "net/ipv4/tcp_ehash_entries"
    own, path = f"net of system.slice/virtlogd.service {table}", f"first {table}"
    golden, found = {("setting", path): size}, {("setting", own): f"-{size}"}
    assert settings(TOPOLOGY, NODE, golden, found)["setting", own] == f"-{size}"


ENDS = [str(node.address(Plane.FABRIC)) for node in TOPOLOGY.nodes]
SHAPE = (
    "proto esp mode transport; replay-window 32; aead rfc4106(gcm(aes)) <<Keys hidden>> 128; "
    "sel src {}/32 dst {}/32"
)
TAP = next(guest for guest in TOPOLOGY.guests if guest.node == NODE.name).nics[0].tap
INTERFACE = {
    "flags": ["BROADCAST", "LOWER_UP", "MULTICAST", "UP"],
    "allmulti": 0,
    "mtu": 1500,
    "txqlen": 1000,
    "group": "default",
    "linkinfo": {"info_data": {"type": "tap"}, "info_kind": "tun", "info_slave_kind": "openvswitch"},
    "master": "ovs-system",
}


def _expected(domain: str, key: str, value: Any) -> bool:
    lines = expected.load(expected.words_of(TOPOLOGY, NODE))
    granted, _ = expected.grant({(domain, key): value}, {}, lines, NODE.role)
    return (domain, key) in granted


def test_keys_between_the_ends_of_tunnels_are_expected_and_no_others() -> None:
    key, shape = f"first {ENDS[0]} {ENDS[1]}", SHAPE.format(*ENDS)
    assert _expected("xfrm state", key, [shape])
    selector = f"sel src {ENDS[0]}/32 dst {ENDS[1]}/32 proto udp sport 9 dport 6081"
    asked = f"proto esp mode transport; replay-window 0; {selector}"
    assert _expected("xfrm state", key, [asked, shape])
    assert not _expected("xfrm state", f"first {ENDS[0]} 203.0.113.9", [shape])
    assert not _expected("xfrm state", f"net of system.slice/x.service {ENDS[0]} {ENDS[1]}", [shape])
    for part, other in (
        ("aead rfc4106(gcm(aes))", "enc ecb(cipher_null)"),
        ("transport", "tunnel"),
        (ENDS[1], "0.0.0.0"),
    ):
        assert not _expected("xfrm state", key, [shape.replace(part, other)])
        assert not _expected("xfrm state", key, [shape, shape.replace(part, other)])


def test_an_interface_of_a_guest_has_the_usual_properties() -> None:
    assert _expected("link", f"first {TAP}", INTERFACE)
    for name, other in (("txqlen", 1007), ("mtu", 9000), ("group", "7"), ("allmulti", 1), ("master", "br0")):
        assert not _expected("link", f"first {TAP}", INTERFACE | {name: other})
    assert not _expected("link", "first tapdeadbeef", INTERFACE)
