"""Changes of each kind in namespaces show as records, and vanish when undone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.inventory.allowed import load
from testbed.inventory.compare import Finding, compare
from testbed.inventory.records import parse

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
_PYTHON = sys.executable
# Runs the program three times: as things are, with the change, and when it is undone.
_HARNESS = """
import json, os, subprocess, sys, time
from testbed.payload.inventory.main import inventory
make, undo, request = json.loads(sys.argv[1])
os.chdir("/tmp")
request["since"] = time.time() - 0.05
def look():
    return [json.loads(line) for line in inventory(request)[1:]]
def shell(text):
    done = subprocess.run(["bash", "-ec", text], capture_output=True, text=True,
                          start_new_session=True, timeout=30)
    assert done.returncode == 0, text + done.stderr
subprocess.run("mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mkdir /run/netns; ip link set lo up",
               shell=True, check=True)
os.chdir("/tmp")
shell("touch old; sleep 0.1")
before = look()
shell(make)
during = look()
shell(undo)
print(json.dumps([before, during, look()]))
"""
_SERVE = f"""{_PYTHON} -c '
import socket, time
s = socket.socket(socket.%s)
s.bind(%s)
%s
open("ready", "w").close()
time.sleep(60)
' < /dev/null > /dev/null 2>&1 & echo $! > pid; for i in $(seq 100); do [ -e ready ] && break; sleep .1; done
rm ready"""
_END = "kill $(cat pid); rm pid; sleep 0.2"


@dataclass(frozen=True)
class Change:
    """A change.

    Args:
        only: collectors that run.
        expect: domain and pattern of the key of each finding; nothing else may be found, but in `beside`.
        beside: domains in which more may be found.

    """

    name: str
    make: str
    undo: str
    only: str
    expect: tuple[tuple[str, str], ...]
    beside: tuple[str, ...] = ()
    needs: str = ""


_LINK = "ip link add brx type bridge"
_ROOTS = "files"
CHANGES = (
    Change(
        "link",
        _LINK,
        "ip link del brx",
        "network",
        (("link", "first brx"),),
        ("setting", "queue", "bridge entry", "bridge port"),
    ),
    Change(
        "address",
        "ip addr add 192.0.2.7/32 dev lo",
        "ip addr del 192.0.2.7/32 dev lo",
        "network",
        (("address", "first lo 192.0.2.7/32"), ("route", "first local 192.0.2.7 local lo")),
    ),
    Change(
        "route",
        "ip route add blackhole 198.51.100.0/24",
        "ip route del blackhole 198.51.100.0/24",
        "network",
        (("route", "first blackhole 198.51.100.0/24.*"),),
    ),
    Change(
        "route of another table",
        "ip route add blackhole 198.51.100.0/24 table 77",
        "ip route flush table 77",
        "network",
        (("route", "first blackhole 198.51.100.0/24 77.*"),),
    ),
    Change(
        "rule",
        "ip rule add from 192.0.2.9 lookup 77",
        "ip rule del from 192.0.2.9 lookup 77",
        "network",
        (("rule", "first -4 [0-9]+ 192.0.2.9"),),
    ),
    Change(
        "neighbour",
        f"{_LINK}; ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev brx nud permanent",
        "ip link del brx",
        "network",
        (("neighbour", "first brx 192.0.2.9"),),
        ("link", "setting", "queue", "bridge entry", "bridge port"),
    ),
    Change(
        "flags of a link",
        "ip link set lo promisc on",
        "ip link set lo promisc off",
        "network",
        (("link", "first lo"),),
    ),
    Change(
        "queue",
        "tc qdisc add dev lo root pfifo limit 7",
        "tc qdisc del dev lo root",
        "network",
        (("queue", "first lo pfifo.*"), ("queue", "first lo noqueue.*"), ("link", "first lo")),
    ),
    Change(
        "table of nftables",
        "nft add table inet x; nft add chain inet x y '{ type filter hook input priority 0; }'; "
        "nft add rule inet x y tcp dport 7 accept",
        "nft delete table inet x",
        "network",
        (("nft table", "first inet x"), ("nft chain", "first inet x y"), ("nft rules", "first inet x y")),
        needs="nft",
    ),
    Change(
        "policy of xfrm",
        "ip xfrm policy add src 192.0.2.1/32 dst 192.0.2.2/32 dir out tmpl proto esp mode transport",
        "ip xfrm policy flush",
        "network",
        (("xfrm policy", "first 192.0.2.1/32 192.0.2.2/32 out"),),
    ),
    Change(
        "state of xfrm",
        "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 1 mode transport "
        "enc cipher_null '' auth digest_null ''",
        "ip xfrm state flush",
        "network",
        (("xfrm state", "first 192.0.2.1 192.0.2.2"),),
    ),
    Change(
        "setting of the network",
        "echo 1 > /proc/sys/net/ipv4/conf/lo/forwarding",
        "echo 0 > /proc/sys/net/ipv4/conf/lo/forwarding",
        "network",
        (("setting", "first net/ipv4/conf/lo/forwarding"),),
    ),
    Change(
        "host name",
        "hostname > name; hostname other-name",
        "hostname $(cat name); rm name",
        "kernel",
        (("setting", "first kernel/hostname"),),
    ),
    Change(
        "TCP listener",
        _SERVE % ("AF_INET", '("127.0.0.1", 4711)', "s.listen()"),
        _END,
        "network",
        (("listener", r"first tcp 127\.0\.0\.1:4711"),),
    ),
    Change(
        "UDP listener",
        _SERVE % ("AF_INET, socket.SOCK_DGRAM", '("0.0.0.0", 47110)', ""),
        _END,
        "network",
        (("listener", r"first udp 0\.0\.0\.0:47110"),),
    ),
    Change(
        "TCP listener of IPv6",
        _SERVE % ("AF_INET6", '("::1", 4711)', "s.listen()"),
        _END,
        "network",
        (("listener", r"first tcp6 \[::1\]:4711"),),
    ),
    Change(
        "listener at a path",
        _SERVE % ("AF_UNIX", '"/tmp/door"', "s.listen()"),
        f"{_END}; rm door",
        "network",
        (("listener", "first unix stream /tmp/door"),),
    ),
    Change(
        "abstract listener",
        _SERVE % ("AF_UNIX", '"\\0door"', "s.listen()"),
        _END,
        "network",
        (("listener", "first unix stream @door"),),
    ),
    Change(
        "sniffer",
        _SERVE % ("AF_PACKET, socket.SOCK_RAW, 768", '("lo", 3)', ""),
        _END,
        "network",
        (("listener", "first packet 0003 link .*"),),
    ),
    Change(
        "process",
        _SERVE % ("AF_INET", '("127.0.0.1", 4711)', "s.listen()"),
        _END,
        "processes",
        (("process", ".*python.*"),),
    ),
    Change(
        "mount",
        "mkdir m; mount -t tmpfs x m",
        "umount m; rmdir m",
        "namespaces",
        (("mount", "first /tmp/m"),),
    ),
    Change(
        "options of a mount",
        "mount -o remount,noexec /run",
        "mount -o remount,exec /run",
        "namespaces",
        (("mount", "first /run"),),
    ),
    Change(
        "mount in another namespace",
        "mkdir m; setsid unshare -m sh -c 'mount -t tmpfs x /tmp/m; exec sleep 60' "
        "< /dev/null > /dev/null 2>&1 & echo $! > pid; sleep 0.5",
        f"{_END}; rmdir m",
        "namespaces",
        (("mount", "mnt of .* /tmp/m"), ("namespace", "mnt of .*")),
        ("mount",),
    ),
    Change(
        "network namespace without a process",
        "ip netns add n; ip -n n link add brn type bridge",
        "ip netns del n; umount /run/netns",
        "network namespaces",
        (("namespace", "net of mounted at /run/netns/n"), ("link", "net of mounted at /run/netns/n brn")),
        (
            "mount",
            "link",
            "address",
            "route",
            "rule",
            "setting",
            "queue",
            "unread",
            "xfrm setting",
            "bridge entry",
            "listener",
        ),
    ),
    Change("setuid file", "cp /bin/true t; chmod 4755 t", "rm t", "files", (("file", "/tmp/t"),), ("file",)),
    Change("content of a file", "echo x > f", "rm f", "files", (("file", "/tmp/f"),), ("file",)),
    Change(
        "content with the old times",
        "echo changed > old; touch -d 2020-01-01 old",
        ": > old",
        "files",
        (("file", "/tmp/old"),),
        ("file",),
    ),
    Change(
        "capability of a file",
        "cp /bin/true t; setcap cap_net_raw+ep t",
        "rm t",
        "files",
        (("file", "/tmp/t"),),
        ("file",),
        "setcap",
    ),
    Change(
        "account",
        "cp /etc/passwd p; echo 'x::0:0::/:/bin/sh' >> p; mount --bind p /etc/passwd",
        "umount /etc/passwd; rm p",
        "accounts",
        (("account", "x"),),
        ("sshd",),
    ),
    Change(
        "account's password",
        "cp /etc/shadow p; echo 'x::1::::::' >> p; mount --bind p /etc/shadow",
        "umount /etc/shadow; rm p",
        "accounts",
        (("password", "shadow x"),),
    ),
    Change(
        "file of PAM",
        "mkdir d; echo auth sufficient pam_permit.so > d/sshd; mount --bind d /etc/pam.d",
        "umount /etc/pam.d; rm -r d",
        "accounts",
        (("access file", "/etc/pam.d/sshd"),),
        ("access file",),
    ),
    Change(
        "authority",
        "mkdir d; echo x > d/evil.pem; mount --bind d /usr/local/share/ca-certificates",
        "umount /usr/local/share/ca-certificates; rm -r d",
        "accounts",
        (("authority", "/usr/local/share/ca-certificates/evil.pem"),),
        ("authority",),
    ),
)


def _findings(now: object, then: object) -> list[Finding]:
    found = compare("here", parse(now), parse(then), load()).findings
    return [finding for finding in found if not _counts(finding)]


def _counts(finding: Finding) -> bool:
    """Whether a finding is of a number that this machine's kernel counts: the look shares that kernel."""
    if finding.domain != "module parameter":
        return False
    module, parameter = finding.key.split()
    return not Path(f"/sys/module/{module}/parameters/{parameter}").stat().st_mode & 0o222


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_change_shows_as_its_record_and_goes_with_it(change: Change) -> None:
    if change.needs and not shutil.which(change.needs):
        pytest.skip(f"{change.needs} is not installed")
    if os.geteuid() != 0:
        pytest.skip("only root may make all of these changes")
    request = {"only": change.only.split(), "roots": ["/tmp"], "key": "00"}
    argv = [
        "unshare",
        "-mnpiu",
        "--fork",
        "--mount-proc",
        _PYTHON,
        "-c",
        _HARNESS,
        json.dumps([change.make, change.undo, request]),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    if any(
        text in done.stderr
        for text in (
            "not supported",
            "not available",
            "Unknown device type",
            "algorithm not found",
            "type not found",
        )
    ):
        pytest.skip(f"this kernel cannot do it: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    before, during, after = json.loads(done.stdout)
    found = _findings(during, before)
    for domain, key in change.expect:
        assert any(item.domain == domain and re.fullmatch(key, item.key) for item in found), (
            domain,
            key,
            [str(i) for i in found],
        )
    more = [
        item
        for item in found
        if not any(item.domain == d and re.fullmatch(k, item.key) for d, k in change.expect)
    ]
    assert [str(item) for item in more if item.domain not in change.beside] == []
    assert all(item.controls for item in found)
    assert [str(item) for item in _findings(after, before) if item.domain != "file"] == []


def test_two_looks_at_an_untouched_place_differ_only_in_what_is_allowed() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can read all of it")
    request = {
        "only": ["kernel", "network", "namespaces", "accounts", "files"],
        "roots": ["/tmp"],
        "key": "00",
    }
    argv = [
        "unshare",
        "-mnpiu",
        "--fork",
        "--mount-proc",
        _PYTHON,
        "-c",
        _HARNESS,
        json.dumps(["true", "true", request]),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    first, *later = json.loads(done.stdout)
    assert len(parse(first).records) > 500
    assert [str(finding) for now in later for finding in _findings(now, first)] == []
    assert all(compare("here", parse(now), parse(first), load()).allowed for now in later)
