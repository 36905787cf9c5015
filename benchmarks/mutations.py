"""Makes small random changes on machines of a running lab, and counts those that are seen.

    python benchmarks/mutations.py LAB LOG [COUNT] [--seed TEXT] [--seconds N]

Each change is made as root on one machine. It is in force alone while that machine is looked at once: its
reading is compared with its reference and with the baseline of its attack surface. If neither sees anything,
the whole configuration is compared with the topology. Then the change is taken back; what the next look still
finds of it is "left", unless it is an inode that is newer than the image. The changes know nothing of the
inventory: they are commands of the machine's own tools with random arguments, at most 15 of a kind.

Each change is a line of JSON in LOG, so that a later call continues an interrupted one. A change that the
machine refuses is drawn again. At the end, or after ``--seconds``, the program prints figures and the changes
that nothing saw. The lab must be one that no breach is open on, and no other process may use it.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.cli.context import entered, running_lab
from testbed.errors import TestbedError
from testbed.inventory import surface
from testbed.inventory.compare import Finding
from testbed.inventory.reference.judge import Scope
from testbed.lab import build_inputs
from testbed.lab.session import Lab
from testbed.model.topology import Machine
from testbed.plan.controls import Walls
from testbed.verify import drift, machine_reference

Ask = Callable[[str], str]  # runs a command on the machine and returns what it prints
Drawn = tuple[str, str]  # the commands that make a change, and those that take it back
Draw = Callable[[random.Random, Ask], Drawn]
_OF_A_KIND = 15
_SECONDS = 60.0  # that making a change may take
_BACK = 180.0  # that taking it back may take: a unit that does not end is killed after 90
_VAIN = 200  # changes in a row that machines refuse


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of change.

    Args:
        controls: ids of the controls whose wall it is about; one of them must be named.
        draw: returns one change with random arguments.
        roles: of the machines on which it can be made.

    """

    name: str
    controls: frozenset[str]
    draw: Draw
    roles: tuple[str, ...] = ("node", "controller")


KINDS: dict[str, Kind] = {}


def _kind(name: str, controls: str, *roles: str) -> Callable[[Draw], Draw]:
    def add(draw: Draw) -> Draw:
        KINDS[name] = Kind(name, frozenset(controls.split()), draw, roles or ("node", "controller"))
        return draw

    return add


def _word(rng: random.Random) -> str:
    return "w" + "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(7))


def _address(rng: random.Random) -> str:
    """Return an address of a range for documentation (RFC 5737)."""
    return f"{rng.choice(('192.0.2', '198.51.100', '203.0.113'))}.{rng.randint(1, 254)}"


def _pick(rng: random.Random, ask: Ask, command: str) -> str:
    """Return one of the lines that a command prints; they are quoted words of a shell."""
    lines = sorted(filter(None, ask(command).split("\n")))
    return shlex.quote(rng.choice(lines)) if lines else "''"


@_kind("a program", "VMM-01")
def _program(rng: random.Random, _: Ask) -> Drawn:
    folder = rng.choice(("/usr/local/bin", "/usr/bin", "/usr/sbin", "/usr/local/lib", "/opt", "/usr/libexec"))
    path = f"{folder}/{_word(rng)}"
    return f"mkdir -p {folder}; install -m 0755 /bin/true {path}", f"rm {path}"


@_kind("a file", "VMM-04 VMM-01")
def _file(rng: random.Random, _: Ask) -> Drawn:
    folders = ("/var/lib", "/srv", "/root", "/home", "/var/tmp", "/etc", "/mnt", "/dev/shm", "/run")
    path = f"{rng.choice(folders)}/{_word(rng)}"
    return f"echo {_word(rng)} > {path}", f"rm {path}"


@_kind("a file of logins", "ACC-02")
def _login(rng: random.Random, _: Ask) -> Drawn:
    folder = rng.choice(
        ("/etc/ssh/sshd_config.d", "/etc/sudoers.d", "/etc/pam.d", "/etc/security", "/root/.ssh")
    )
    path = f"{folder}/{_word(rng)}"
    return f"mkdir -p {folder}; echo '# {_word(rng)}' > {path}; chmod 0440 {path}", f"rm {path}"


@_kind("the mode of a program", "VMM-01 PRO-01")
def _mode(rng: random.Random, ask: Ask) -> Drawn:
    path = _pick(rng, ask, "find /usr/bin /usr/sbin -type f -perm 0755")
    return f"chmod {rng.choice(('0777', '0775', '4755', '2755', '0757'))} {path}", f"chmod 0755 {path}"


@_kind("an attribute of a file", "VMM-01 PRO-01")
def _attribute(rng: random.Random, ask: Ask) -> Drawn:
    path = _pick(rng, ask, "find /usr/bin /usr/sbin -type f -perm 0755")
    name = rng.choice((f"user.{_word(rng)}", "security.capability"))
    value = "0100000200200000000000000000000000000000" if name.startswith("security") else "00"
    return (
        f'python3 -c \'import os, sys; os.setxattr(sys.argv[1], "{name}", bytes.fromhex("{value}"))\' {path}',
        f"python3 -c 'import os, sys; os.removexattr(sys.argv[1], \"{name}\")' {path}",
    )


@_kind("a symbolic link", "VMM-01 VMM-04")
def _link_file(rng: random.Random, ask: Ask) -> Drawn:
    path = _pick(rng, ask, "find /usr/bin /etc/alternatives -type l")
    old = shlex.quote(ask(f"readlink {path}").strip())
    return f"ln -sfn /bin/{_word(rng)} {path}", f"ln -sfn {old} {path}"


@_kind("a unit file", "VMM-01")
def _unit(rng: random.Random, _: Ask) -> Drawn:
    folder, kind = rng.choice(("/run", "/etc")), rng.choice(("service", "path", "target"))
    path = f"{folder}/systemd/system/{_word(rng)}.{kind}"
    text = "[Unit]\\nDescription=x\\n" + (
        "[Service]\\nExecStart=/bin/true\\n" if path.endswith("service") else ""
    )
    text += "[Path]\\nPathExists=/nowhere\\n" if path.endswith(".path") else ""
    return f"printf '{text}' > {path}; systemctl daemon-reload", f"rm {path}; systemctl daemon-reload"


@_kind("a drop-in of a unit", "VMM-01")
def _drop_in(rng: random.Random, ask: Ask) -> Drawn:
    unit = _pick(
        rng, ask, "systemctl list-units --type=service --plain --no-legend | cut -d' ' -f1 | grep -v @"
    )
    folder = f"/run/systemd/system/{unit}.d"
    line = rng.choice(
        ("[Unit]\\nDescription=x", "[Service]\\nEnvironment=A=b", "[Service]\\nLimitCORE=infinity")
    )
    file = f"{folder}/{_word(rng)}.conf"
    return (
        f"mkdir -p {folder}; printf '{line}\\n' > {file}; systemctl daemon-reload",
        f"rm {file}; rmdir --ignore-fail-on-non-empty {folder}; systemctl daemon-reload",
    )


@_kind("a process", "PRO-01 PRC-01 VMM-01")
def _process(rng: random.Random, _: Ask) -> Drawn:
    name, account = _word(rng), rng.choice(("root", "nobody", "daemon"))
    start = f"systemd-run --quiet --unit={name} --uid={account} /bin/sleep 1{rng.randint(100, 999)}"
    return start, f"systemctl stop {name}"


@_kind("a socket that listens", "NET-08 NET-09 PRO-01 ACC-05 ACC-02")
def _listener(rng: random.Random, _: Ask) -> Drawn:
    name, port = _word(rng), rng.randint(1024, 60000)
    place = rng.choice((f"Stream={port}", f"Datagram={port}", f"Stream=/run/{name}", f"Stream=@{name}"))
    return (
        f"systemd-run --quiet --unit={name} --socket-property=Listen{place} /bin/true",
        f"systemctl stop {name}.socket; rm -f /run/{name}",
    )


@_kind("a timer", "VMM-01")
def _timer(rng: random.Random, _: Ask) -> Drawn:
    name = _word(rng)
    start = f"systemd-run --quiet --unit={name} --on-active={rng.randint(100, 999)}h /bin/true"
    return start, f"systemctl stop {name}.timer"


@_kind("a line of accounts", "ACC-02")
def _account(rng: random.Random, _: Ask) -> Drawn:
    name, number = _word(rng), rng.randint(20000, 60000)
    file, line = rng.choice(
        (
            ("/etc/passwd", f"{name}:x:{number}:{number}::/:/bin/sh"),
            ("/etc/group", f"{name}:x:{number}:"),
            ("/etc/shadow", f"{name}:*:20000:0:99999:7:::"),
        )
    )
    return f"echo '{line}' >> {file}", f"sed -i '/^{name}:/d' {file}"


_MODULES = (
    "bonding", "btrfs", "cuse", "dummy", "ifb", "ip_gre", "ipip", "isofs", "loop", "macvlan", "nbd", "rds",
    "sctp", "sit", "squashfs", "team", "udf", "vrf",
)  # fmt: skip


@_kind("a module of the kernel", "VMM-01")
def _module(rng: random.Random, ask: Ask) -> Drawn:
    loaded = {line.split()[0] for line in ask("cat /proc/modules").splitlines()}
    name = rng.choice([item for item in _MODULES if item not in loaded])
    return f"modprobe {name}", f"modprobe -r {name}"


@_kind("a parameter of a module", "VMM-01 CMP-02 DEV-04")
def _parameter(rng: random.Random, ask: Ask) -> Drawn:
    path = _pick(
        rng, ask, "find /sys/module/*/parameters -type f -perm -0200 -size -2 | grep -v -e acpi -e i8042"
    )
    old = ask(f"cat {path}").strip()
    new = {"Y": "N", "N": "Y"}.get(old) or str(int(old) + 1)
    return f"echo {new} > {path}", f"echo {old} > {path}"


def _setting(rng: random.Random, ask: Ask, names: str) -> Drawn:
    path = f"/proc/sys/{rng.choice(names.split())}"
    old = ask(f"cat {path}").strip()
    new = {"0": "1", "1": "0", "2": "1"}.get(old) or str(int(old) + 1)
    return f"echo {new} > {path}", f"echo {old} > {path}"


@_kind("a setting of the kernel", "XPL-01 PRC-01 VMM-04 VMM-01 CMP-02 STO-05")
def _kernel(rng: random.Random, ask: Ask) -> Drawn:
    return _setting(
        rng,
        ask,
        "kernel/kptr_restrict kernel/dmesg_restrict kernel/perf_event_paranoid kernel/sysrq "
        "kernel/yama/ptrace_scope "
        "kernel/randomize_va_space kernel/panic kernel/print-fatal-signals kernel/pid_max vm/swappiness "
        "vm/overcommit_memory vm/mmap_min_addr vm/max_map_count fs/protected_hardlinks fs/protected_symlinks "
        "fs/protected_fifos fs/protected_regular fs/suid_dumpable fs/pipe-max-size "
        "fs/inotify/max_user_watches "
        "user/max_user_namespaces user/max_net_namespaces",
    )


@_kind("a setting of the network", "NET-09 NET-01 NET-08")
def _network(rng: random.Random, ask: Ask) -> Drawn:
    link = _pick(rng, ask, "ls /proc/sys/net/ipv4/conf")
    four, six = f"net/ipv4/conf/{link}", f"net/ipv6/conf/{link}"
    return _setting(
        rng,
        ask,
        "net/ipv4/ip_nonlocal_bind net/ipv4/tcp_syncookies net/ipv4/icmp_echo_ignore_all net/core/rmem_max "
        f"net/core/bpf_jit_harden net/ipv4/tcp_timestamps {four}/rp_filter {four}/accept_redirects "
        f"{four}/proxy_arp {four}/arp_ignore {four}/forwarding {four}/accept_source_route "
        f"{four}/send_redirects {six}/accept_ra {six}/forwarding {six}/proxy_ndp",
    )


@_kind("memory management", "CMP-02 VMM-04 VMM-01")
def _memory(rng: random.Random, ask: Ask) -> Drawn:
    ksm, huge = "/sys/kernel/mm/ksm", "/sys/kernel/mm/transparent_hugepage/enabled"
    old = ask(f"cat {huge}").partition("[")[2].partition("]")[0]
    return rng.choice(
        (
            (f"echo 1 > {ksm}/run", f"echo 0 > {ksm}/run"),
            (f"echo never > {huge}", f"echo {old} > {huge}"),
        )
    )


@_kind("a link", "NET-09")
def _link(rng: random.Random, ask: Ask) -> Drawn:
    name = _word(rng)[:8]
    kind = rng.choice(("bridge", "veth", "dummy", "vlan", "macvlan", "ifb", "vxlan"))
    base = _pick(rng, ask, "ls /sys/class/net | grep '0$'")
    more = {"vlan": f"id {rng.randint(2, 4000)}", "vxlan": f"id {rng.randint(1, 9999)} dstport 4789"}.get(
        kind, ""
    )
    on = f"link {base} " if kind in ("vlan", "macvlan") else ""
    return f"ip link add {on}{name} type {kind} {more}", f"ip link del {name}"


@_kind("an address", "NET-09")
def _own_address(rng: random.Random, ask: Ask) -> Drawn:
    base, address = _pick(rng, ask, "ls /sys/class/net | grep -e '0$' -e '^lo$'"), _address(rng)
    return f"ip addr add {address}/32 dev {base}", f"ip addr del {address}/32 dev {base}"


@_kind("a route", "NET-09")
def _route(rng: random.Random, _: Ask) -> Drawn:
    what = (
        f"{rng.choice(('blackhole', 'unreachable', 'prohibit'))} {_address(rng)} table {rng.randint(1, 250)}"
    )
    return f"ip route add {what}", f"ip route del {what}"


@_kind("a routing rule", "NET-09")
def _rule(rng: random.Random, _: Ask) -> Drawn:
    side, table, order = rng.choice(("from", "to")), rng.randint(1, 250), rng.randint(1000, 30000)
    what = f"{side} {_address(rng)} lookup {table} priority {order}"
    return f"ip rule add {what}", f"ip rule del {what}"


@_kind("a permanent neighbour", "NET-09")
def _neighbour(rng: random.Random, ask: Ask) -> Drawn:
    base, address = _pick(rng, ask, "ls /sys/class/net | grep '0$'"), _address(rng)
    mac = ":".join(["02", *(f"{rng.randrange(256):02x}" for _ in range(5))])
    return (
        f"ip neigh add {address} lladdr {mac} dev {base} nud permanent",
        f"ip neigh del {address} dev {base}",
    )


@_kind("a property of a link", "NET-09 NET-11 NET-01")
def _property(rng: random.Random, ask: Ask) -> Drawn:
    base = _pick(rng, ask, "ls /sys/class/net | grep -e '0$' -e '^br-'")
    length = ask(f"cat /sys/class/net/{base}/tx_queue_len").strip()
    return rng.choice(
        (
            (f"ip link set {base} promisc on", f"ip link set {base} promisc off"),
            (f"ip link set {base} txqueuelen {int(length) + 7}", f"ip link set {base} txqueuelen {length}"),
            (f"ip link set {base} allmulticast on", f"ip link set {base} allmulticast off"),
        )
    )


@_kind("a table of nftables", "NET-09 NET-01")
def _table(rng: random.Random, _: Ask) -> Drawn:
    name = f"{rng.choice(('inet', 'ip', 'ip6', 'arp', 'bridge', 'netdev'))} {_word(rng)}"
    return f"nft add table {name}", f"nft delete table {name}"


@_kind("a rule of nftables", "NET-09 NET-08")
def _nft_rule(rng: random.Random, ask: Ask) -> Drawn:
    chain = _pick(rng, ask, "nft -a list table inet testbed | sed -n 's/^\\tchain \\(\\S*\\) .*/\\1/p'")
    mark = f"0x{rng.randrange(2**31):x}"
    verdict = rng.choice(("accept", "drop", "counter"))
    number = f"nft -a list chain inet testbed {chain} | awk '/{mark[2:]}/ {{print $NF; exit}}'"
    return (
        f"nft insert rule inet testbed {chain} meta mark {mark} {verdict}",
        f"nft delete rule inet testbed {chain} handle $({number})",
    )


@_kind("a queue", "NET-09 NET-12")
def _queue(rng: random.Random, ask: Ask) -> Drawn:
    base = _pick(rng, ask, "ls /sys/class/net | grep -e '0$' -e '^lo$'")
    return rng.choice(
        (
            (f"tc qdisc add dev {base} clsact", f"tc qdisc del dev {base} clsact"),
            (
                f"tc qdisc replace dev {base} root pfifo limit {rng.randint(5, 900)}",
                f"tc qdisc del dev {base} root",
            ),
        )
    )


@_kind("a policy or state of IPsec", "NET-08")
def _ipsec(rng: random.Random, _: Ask) -> Drawn:
    source, target = _address(rng), _address(rng)
    spi = f"0x{rng.randrange(256, 2**31):x}"
    state = f"src {source} dst {target} proto esp spi {spi}"
    key = "0x" + "".join(rng.choice("0123456789abcdef") for _ in range(40))
    policy = f"src {source} dst {target} dir {rng.choice(('in', 'out', 'fwd'))}"
    return rng.choice(
        (
            (f"ip xfrm policy add {policy} action allow", f"ip xfrm policy delete {policy}"),
            (f"ip xfrm state add {state} mode transport aead 'rfc4106(gcm(aes))' {key} 128",
             f"ip xfrm state delete src {source} dst {target} proto esp spi {spi}"),
        )
    )  # fmt: skip


@_kind("a network namespace", "PRC-01 NET-09")
def _namespace(rng: random.Random, _: Ask) -> Drawn:
    name = _word(rng)
    return f"ip netns add {name}", f"ip netns del {name}"


@_kind("a namespace of a process", "PRC-01 PRO-01")
def _unshared(rng: random.Random, _: Ask) -> Drawn:
    name, kind = _word(rng), rng.choice(("uts", "ipc", "mount", "cgroup", "net", "pid --fork"))
    program = f"unshare --{kind} sleep 1{rng.randint(100, 999)}"  # it may ignore the signal to end
    start = f"systemd-run --quiet -p TimeoutStopSec=2 --unit={name} {program}"
    return start, f"systemctl stop {name}"


@_kind("a mount", "VMM-04 VMM-01 STO-01 STO-07")
def _mount(rng: random.Random, _: Ask) -> Drawn:
    place = rng.choice(("/mnt", "/srv", "/opt", "/media", "/usr/local/share"))
    what = rng.choice((f"-t tmpfs {_word(rng)}", "--bind /etc", "--bind /var/lib", "-t proc x"))
    return f"mount {what} {place}", f"umount {place}"


@_kind("a mount that a service sees", "PRC-01 VMM-04")
def _inner_mount(rng: random.Random, ask: Ask) -> Drawn:
    own = "readlink /proc/1/ns/mnt"
    pid = _pick(
        rng,
        ask,
        f"for p in $(pgrep -f systemd-networkd) $(pgrep -f systemd-journald) $(pgrep qemu); do "
        f'[ "$(readlink /proc/$p/ns/mnt)" != "$({own})" ] && echo $p; done; true',
    )
    enter = f"nsenter -t {pid} -m"
    return f"{enter} mount -t tmpfs {_word(rng)} /mnt", f"{enter} umount /mnt"


@_kind("a row of the switch", "NET-01 NET-08 NET-11 NET-12 NET-02", "node")
def _switch(rng: random.Random, ask: Ask) -> Drawn:
    table = rng.choice(("open_vswitch", "bridge", "port", "interface"))
    row = (
        "."
        if table == "open_vswitch"
        else _pick(rng, ask, f"ovs-vsctl --bare --columns=name list {table} | grep .")
    )
    column, key = rng.choice(("external_ids", "other_config")), _word(rng)
    return (
        f"ovs-vsctl set {table} {row} {column}:{key}={_word(rng)}",
        f"ovs-vsctl remove {table} {row} {column} {key}",
    )


@_kind("a mirror, a manager or a record of flows of the switch", "NET-11 NET-08 NET-01", "node")
def _spy(rng: random.Random, _: Ask) -> Drawn:
    name, port = _word(rng), rng.randint(10000, 60000)
    return rng.choice(
        (
            (f"ovs-vsctl -- --id=@m create mirror name={name} select-all=true "
             "-- add bridge br-int mirrors @m",
             "ovs-vsctl clear bridge br-int mirrors"),
            (f"ovs-vsctl set-manager ptcp:{port}:127.0.0.1", "ovs-vsctl del-manager"),
            (f"ovs-vsctl set-controller br-int tcp:127.0.0.1:{port}", "ovs-vsctl del-controller br-int"),
            ("ovs-vsctl -- set bridge br-int netflow=@n "
             f"-- --id=@n create netflow 'targets=\"127.0.0.1:{port}\"'",
             "ovs-vsctl clear bridge br-int netflow"),
        )
    )  # fmt: skip


@_kind("a flow", "NET-01 NET-02 NET-04 NET-11", "node")
def _flow(rng: random.Random, _: Ask) -> Drawn:
    table, cookie = rng.randint(0, 60), f"0x{rng.randrange(2**40):x}"
    match = f"priority={rng.randint(1, 65535)},ip,nw_src={_address(rng)}"
    action = rng.choice(("drop", "NORMAL", "resubmit(,8)", "LOCAL"))
    return (
        f"ovs-ofctl add-flow br-int 'cookie={cookie},table={table},{match},actions={action}'",
        f"ovs-ofctl del-flows br-int 'cookie={cookie}/-1'",
    )


@_kind("a group or meter of the switch", "NET-01 NET-12", "node")
def _group(rng: random.Random, _: Ask) -> Drawn:
    number = rng.randint(1000, 60000)
    return rng.choice(
        (
            (f"ovs-ofctl -O OpenFlow15 add-group br-int group_id={number},type=all,bucket=actions=drop",
             f"ovs-ofctl -O OpenFlow15 del-groups br-int group_id={number}"),
            (f"ovs-ofctl -O OpenFlow15 add-meter br-int meter={number},kbps,bands=type=drop,rate=100",
             f"ovs-ofctl -O OpenFlow15 del-meter br-int meter={number}"),
        )
    )  # fmt: skip


@_kind("a row of the northbound database", "NET-01 NET-02 NET-04 NET-06 NET-10 NET-11 VMM-04", "controller")
def _northbound(rng: random.Random, ask: Ask) -> Drawn:
    table = rng.choice(
        ("Logical_Switch", "Logical_Switch_Port", "DHCP_Options", "ACL", "Port_Group", "NB_Global")
    )
    row = _pick(rng, ask, f"ovn-nbctl --bare --columns=_uuid list {table} | grep .")
    key = _word(rng)
    column = "other_config" if table == "Logical_Switch" and rng.random() < 0.5 else "external_ids"
    return (
        f"ovn-nbctl set {table} {row} {column}:{key}={_word(rng)}",
        f"ovn-nbctl remove {table} {row} {column} {key}",
    )


@_kind("a rule of the northbound database", "NET-01 NET-02", "controller")
def _acl(rng: random.Random, ask: Ask) -> Drawn:
    switch = _pick(rng, ask, "ovn-nbctl --bare --columns=name list Logical_Switch | grep .")
    side, order = rng.choice(("to-lport", "from-lport")), rng.randint(1, 32767)
    what = f"{switch} {side} {order} 'ip4.src == {_address(rng)}'"
    return (
        f"ovn-nbctl acl-add {what} {rng.choice(('allow', 'drop', 'allow-related'))}",
        f"ovn-nbctl acl-del {what}",
    )


@_kind("a profile of AppArmor", "PRC-02")
def _profile(rng: random.Random, _: Ask) -> Drawn:
    name = _word(rng)
    return (
        f"printf 'profile {name} {{ /etc/{_word(rng)} r, }}' | apparmor_parser -a",
        f"printf 'profile {name} {{ }}' | apparmor_parser -R",
    )


@_kind("an object of libvirt", "NET-09 ACC-05 STO-01 STO-02", "node")
def _libvirt(rng: random.Random, _: Ask) -> Drawn:
    name, hooks = _word(rng), "/etc/libvirt/hooks/network.d"
    network = f'<network><name>{name}</name><forward mode="bridge"/><bridge name="{name}"/></network>'
    return rng.choice(
        (
            (f"echo '{network}' | virsh -q net-define /dev/stdin", f"virsh -q net-undefine {name}"),
            (f"echo '<filter name=\"{name}\" chain=\"root\"/>' | virsh -q nwfilter-define /dev/stdin",
             f"virsh -q nwfilter-undefine {name}"),
            (f"install -D -m 0755 /bin/true {hooks}/{name}",
             f"rm {hooks}/{name}; rmdir --ignore-fail-on-non-empty {hooks}"),
        )
    )  # fmt: skip


@_kind("a rule of the audit", "AUD-01")
def _audit(rng: random.Random, _: Ask) -> Drawn:
    what = f"-F path=/etc/{_word(rng)} -F perm=r"
    return f"auditctl -a never,exit {what}", f"auditctl -d never,exit {what}"


@_kind("a block device", "STO-01 DEV-02 VMM-01")
def _loop(rng: random.Random, _: Ask) -> Drawn:
    path = f"/dev/shm/{_word(rng)}"
    return (
        f"truncate -s {rng.randint(1, 9)}M {path}; modprobe loop; losetup -f {path}",
        f"losetup -j {path} | cut -d: -f1 | xargs losetup -d; rm {path}; sleep 1; modprobe -r loop",
    )


@_kind("a format of programs", "VMM-01")
def _format(rng: random.Random, _: Ask) -> Drawn:
    name = _word(rng)
    folder = "/proc/sys/fs/binfmt_misc"
    return (
        f"mount | grep -q binfmt_misc || mount -t binfmt_misc x {folder}; "
        f"echo ':{name}:E::{name[:5]}::/bin/true:' > {folder}/register",
        f"echo -1 > {folder}/{name}; umount {folder}; modprobe -r binfmt_misc",
    )


@_kind("a file that programs read at their start", "VMM-01 VMM-04")
def _start(rng: random.Random, _: Ask) -> Drawn:
    folders = ("ld.so.conf.d", "cron.d", "profile.d", "modprobe.d", "tmpfiles.d", "sysctl.d")
    folder = f"/etc/{rng.choice(folders)}"
    path = f"{folder}/{_word(rng)}.conf"
    return f"mkdir -p {folder}; echo '# x' > {path}", f"rm {path}"


@_kind("an authority", "ACC-02 NET-08 VMM-01")
def _authority(rng: random.Random, _: Ask) -> Drawn:
    folder = rng.choice(("/usr/local/share/ca-certificates", "/etc/apt/trusted.gpg.d", "/etc/swanctl/x509ca"))
    path = f"{folder}/{_word(rng)}.crt"
    return f"mkdir -p {folder}; echo {_word(rng)} > {path}", f"rm {path}"


@_kind("a limit of a control group", "DOS-02 DOS-03")
def _limit(rng: random.Random, ask: Ask) -> Drawn:
    group = _pick(rng, ask, "find /sys/fs/cgroup/system.slice -maxdepth 1 -name '*.service'")
    name, value = rng.choice(
        (("memory.high", f"{rng.randint(200, 900)}M"), ("pids.max", str(rng.randint(500, 900))))
    )
    old = ask(f"cat {group}/{name}").strip()
    return f"echo {value} > {group}/{name}", f"echo {old} > {group}/{name}"


@_kind("the environment of services", "VMM-01")
def _environment(rng: random.Random, _: Ask) -> Drawn:
    name = _word(rng).upper()
    return f"systemctl set-environment {name}={_word(rng)}", f"systemctl unset-environment {name}"


@_kind("a probe of the kernel", "VMM-03")
def _probe(rng: random.Random, _: Ask) -> Drawn:
    folder, name = "/sys/kernel/tracing", _word(rng)
    function = rng.choice(("vfs_read", "vfs_write", "do_sys_openat2", "tcp_v4_connect"))
    return (
        f"mount | grep -q tracefs || mount -t tracefs x {folder}; "
        f"echo 'p:{name} {function}' > {folder}/kprobe_events",
        f"echo '-:{name}' >> {folder}/kprobe_events; umount {folder} 2>/dev/null; true",
    )


@_kind("names of hosts", "VMM-04 NET-09")
def _names(rng: random.Random, _: Ask) -> Drawn:
    line = f"{_address(rng)} {_word(rng)}"
    return f"echo '{line}' >> /etc/hosts", f"sed -i '/^{line}$/d' /etc/hosts"


@dataclass
class Looks:
    """Looks at machines of a lab, and what stays of each change.

    Args:
        before: findings of the last look, by machine.

    """

    lab: Lab
    before: dict[str, set[Finding]] = field(default_factory=dict)

    def look(self, machine: Machine) -> tuple[dict[str, set[str]], list[str]]:
        """Return what is new since the last look, in words with its controls; and gaps of the reading."""
        state = machine_reference.look(self.lab, machine, Scope.WHOLE)
        findings = set(state.findings)
        new = findings - self.before.get(machine.name, set())
        self.before[machine.name] = findings
        told = {f"{item.domain} {item.key} {item.property}".strip(): set(item.controls) for item in new}
        if state.found is not None:
            parts = surface.surface(state.found, self.lab.topology, machine)
            grown = surface.grown(parts, surface.baseline()[machine.role])
            told |= {f"surface {text}": {"PRO-01"} for text in grown}
        return told, list(state.gaps)

    def differences(self) -> dict[str, set[str]]:
        """Return what differs from the topology, in words with the controls that it endangers."""
        walls = Walls.of_lab(self.lab.topology)
        return {
            f"drift {item.key} {item.name}": set(walls.endangered(item))
            for item in drift.look(self.lab).open()
        }


def _changes(lab: Lab, looks: Looks, rng: random.Random, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Make one change after the other, and yield what was seen of each."""
    vain, refused = 0, Counter[str]()
    while vain < _VAIN:
        machine = rng.choice(lab.topology.machines)
        kind = rng.choice(list(KINDS.values()))
        if (
            machine.role not in kind.roles
            or counts[kind.name] >= _OF_A_KIND
            or refused[kind.name] > 5 * _OF_A_KIND
        ):
            vain += 1
            continue
        host = lab.host(machine.name)

        def ask(command: str, host: Any = host) -> str:  # noqa: ANN401 - a host
            return str(host.must(command, timeout=_SECONDS))

        try:
            make, undo = kind.draw(rng, ask)
            done = host.sudo(make, timeout=_SECONDS)
        except (TestbedError, ValueError, IndexError):
            refused[kind.name] += 1
            vain += 1
            continue
        if done.status != 0:
            _taken_back(host, undo)
            refused[kind.name] += 1
            vain += 1
            continue
        started, vain = time.monotonic(), 0
        try:
            told, gaps = looks.look(machine)
            told = told or looks.differences()
        finally:
            back = _taken_back(host, undo)
        named = set().union(*told.values())
        yield {
            "kind": kind.name,
            "machine": machine.name,
            "make": make,
            "seen": bool(told),
            "right": bool(named & kind.controls),
            "found": {text: sorted(controls) for text, controls in list(told.items())[:12]},
            "gaps": gaps[:5],
            "undone": back,
            "seconds": round(time.monotonic() - started, 1),
        }


def _taken_back(host: Any, undo: str) -> bool:  # noqa: ANN401 - a host
    try:
        return bool(host.sudo(undo, timeout=_BACK).status == 0)
    except TestbedError:
        return False


def _figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    domains = {text.split()[0] for line in lines for text in line["found"]}
    seen, right = sum(line["seen"] for line in lines), sum(line["right"] for line in lines)
    return {
        "changes": len(lines),
        "kinds": len({line["kind"] for line in lines}),
        "words of findings": len(domains),
        "seen": seen,
        "seen of all": round(seen / max(1, len(lines)), 3),
        "right": right,
        "right of all": round(right / max(1, len(lines)), 3),
        "seconds each": round(sum(line["seconds"] for line in lines) / max(1, len(lines)), 1),
        "not undone": [line["make"] for line in lines if not line["undone"]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("lab")
    parser.add_argument("log", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--seed", default="mutations")
    parser.add_argument("--seconds", type=float, default=86_400)
    given = parser.parse_args()
    lines = [json.loads(text) for text in given.log.read_text().splitlines()] if given.log.exists() else []
    end = time.monotonic() + given.seconds
    topology, workspace, _ = running_lab(given.lab)
    with entered(topology, workspace, build_inputs.load_inputs()) as lab:
        looks = Looks(lab)
        for machine in topology.machines:
            told, gaps = looks.look(machine)
            print(
                f"before: {machine.name}: {len(told)} findings, {len(gaps)} gaps",
                *told,
                *gaps,
                sep="\n  ",
                flush=True,
            )
        rng = random.Random(f"{given.seed} {len(lines)}")
        counts = Counter(line["kind"] for line in lines)
        changes = _changes(lab, looks, rng, counts)
        while len(lines) < given.count and time.monotonic() < end and (line := next(changes, None)):
            counts[line["kind"]] += 1
            lines.append(line)
            with given.log.open("a") as log:
                log.write(json.dumps(line) + "\n")
            mark = "" if line["right"] else "OTHER CONTROL " if line["seen"] else "MISSED "
            print(f"{len(lines)} {mark}{line['machine']}: {line['make']} ({line['seconds']} s)", flush=True)
    print(json.dumps(_figures(lines), indent=1))
    for line in lines:
        if not line["right"]:
            print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
