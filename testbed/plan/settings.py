"""Settings of a machine that hold a wall: how to observe each, the value it must have, how to restore it.

They are resources like any other, so that a breach in force shows as drift and ``up`` repairs it
(docs/decisions/0002). Commands run as root on the machine, in one batch; a value is what a command prints.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.model.testbed import IMAGES, Machine, Plane, Role, Testbed
from testbed.plan.identity import address_sets
from testbed.plan.neighbours import ATTACH, GUARDS, RULES, allowed, guarded, links

SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/libvirt-sock-ro", "/run/libvirt/libvirt-admin-sock")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Args:
        name: what it is.
        controls: ids of the controls it serves.
        observe: shell commands that print the value.
        value: what they must print, without surrounding white space.
        repair: shell commands that restore it.

    """

    name: str
    controls: str
    observe: str
    value: str
    repair: str


def settings(lab: Testbed, machine: Machine) -> tuple[Setting, ...]:
    """Return every setting of a machine."""
    common = (*_firewall(lab, machine), *_protection(lab, machine), *_NETWORK, *_ACCESS)
    node = (*_ROOT_PARTITION, *_neighbours(lab, machine), _claims(lab, machine))
    return (*common, *(node if machine.role is Role.NODE else _CENTRAL))


def _claims(lab: Testbed, machine: Machine) -> Setting:
    """Return that no interface of a node claims a logical port that is not its own (docs/decisions/0013)."""
    own = [nic for guest in lab.guests_on(machine.name) for nic in guest.nics]
    known = " ".join(f"-e '{nic.tap} {nic.port}'" for nic in own) or "-e none"
    foreign = (
        "ovs-vsctl -voff --format=csv --no-headings --columns=name,external_ids list interface "
        f"| sed -nE 's/^\"?([^\",]+)\"?,.*iface-id=\"*([0-9a-f-]+).*/\\1 \\2/p' | grep -vxF {known}"
    )
    back = " ".join(f"{nic.tap}) ovs-vsctl set interface $name external_ids:iface-id={nic.port} ;;" for nic in own)
    repair = f"{foreign} | while read -r name port; do case $name in {back} *) ovs-vsctl --if-exists del-port br-int $name ;; esac; done"
    return Setting("port-claims", "NET-13", foreign, "", repair)


def _firewall(lab: Testbed, machine: Machine) -> tuple[Setting, ...]:
    elements = tuple(_address_set(name, addresses) for name, addresses in address_sets(lab, machine).items())
    # The file is the wall; what the kernel runs must be that file, rule for rule, and nothing beside it. The kernel
    # itself tells how it writes the file's rules down, in a network namespace that is gone afterwards.
    chains = "nft -s list table inet testbed | sed -n '/chain/,/^\t}/p'"
    rules = (
        f"file=$(unshare --net sh -c \"nft -f /etc/nftables.conf; {chains}\"); live=$({chains}); "
        "[ \"$file\" = \"$live\" ] && echo as in the file || echo not as in the file; "
        "echo \"$live\" | grep -cE '(accept|reject|drop|counter)'; nft list tables | grep -v '^table netdev neighbours$'"
    )
    wanted = "as in the file\n13\ntable inet testbed"
    others = "nft list tables | grep -v -e '^table netdev neighbours$' -e '^table inet testbed$'"
    repair = f"{others} | while read -r _ family name; do nft delete table $family $name; done; nft -f /etc/nftables.conf"
    chain = Setting("firewall", "NET-09", rules, wanted, repair)
    return (chain, *elements)


def _address_set(name: str, addresses: tuple[str, ...]) -> Setting:
    fill = f"; nft add element inet testbed {name} '{{ {', '.join(addresses)} }}'" if addresses else ""
    return Setting(
        name.replace("_", "-"),
        "NET-08",
        f"nft list set inet testbed {name} | grep -oE '[0-9]+\\.[0-9.]+' | sort",
        "\n".join(sorted(addresses)),
        f"nft flush set inet testbed {name}{fill}",
    )


def _neighbours(lab: Testbed, machine: Machine) -> tuple[Setting, ...]:
    """Return the settings of the guard in front of guests that have IPv6; none where there is no such guest."""
    devices = " ".join(guarded(lab, machine))
    if not devices:
        return ()
    chain = "nft -s list chain netdev neighbours"
    rules = (
        f"file=$(unshare --net sh -c \"nft -f {RULES}; {chain} judge\"); "
        f"[ -n \"$file\" ] && [ \"$file\" = \"$({chain} judge)\" ] && echo as in the file || echo not as in the file; "
        f"for device in {devices}; do [ ! -e /sys/class/net/$device ] || "
        f"[ \"$({chain} $device | sed 1,3d | tr -d '\\t\\n')\" = 'jump judge}}}}' ] || echo $device is not guarded; done"
    )
    attach = f"for device in {devices}; do [ ! -e /sys/class/net/$device ] || {ATTACH} $device; done"
    guard, neighbours, own = GUARDS
    return (
        Setting(guard, "NET-05", rules, "as in the file", f"nft -f {RULES}; {attach}"),
        _pairs(neighbours, "NET-01", "allowed", allowed(lab, machine)),
        _pairs(own, "NET-05", "links", links(lab, machine)),
    )


def _pairs(name: str, control: str, held: str, pairs: tuple[tuple[str, str], ...]) -> Setting:
    """Return the setting that is a set of the guard: interfaces, and what each of them may name."""
    lines = sorted(f"{device} . {value}" for device, value in pairs)
    fill = f"; nft add element netdev neighbours {held} '{{ {', '.join(lines)} }}'" if lines else ""
    listing = f"nft list set netdev neighbours {held} | grep -oE '\"?tap[0-9a-f]+\"? [.] [0-9a-fx:]+' | tr -d '\"' | LC_ALL=C sort"
    return Setting(name, control, listing, "\n".join(lines), f"nft flush set netdev neighbours {held}{fill}")

def _protection(lab: Testbed, machine: Machine) -> tuple[Setting, ...]:
    """Return what the kernel must ask of UDP between a node and its peers: ESP, both ways, and no way around it."""
    peers = address_sets(lab, machine)["tunnel_peers"]
    if not peers:
        return ()
    own = machine.address(Plane.FABRIC)
    ends = sorted(line for peer in peers for line in (f"in {peer}/32 {own}/32 esp", f"out {own}/32 {peer}/32 esp"))
    # One line a policy: src A dst B proto udp \ dir D priority N ptype main \ tmpl src S dst T \ proto esp …
    look = (
        "ip -o xfrm policy | grep -v socket | sed -E 's/^src ([^ ]+) dst ([^ ]+) .*dir ([a-z]+) .*proto esp .*mode transport.*/"
        "\\3 \\1 \\2 esp/' | sort"
    )
    return (Setting("tunnel-protection", "NET-08", look, "\n".join(ends), "ip xfrm policy flush; systemctl restart strongswan"),)


# A machine answers for an address on that address's network only, forwards nothing and speaks no IPv6 (NET-09).
_KERNEL = {
    "net.ipv4.ip_forward": 0, "net.ipv4.conf.all.rp_filter": 1, "net.ipv4.conf.all.arp_ignore": 2,
    "net.ipv4.conf.all.accept_redirects": 0, "net.ipv6.conf.all.disable_ipv6": 1,
}  # fmt: skip
_NETWORK = (
    Setting(
        "network-stack",
        "NET-09",
        f"sysctl {' '.join(_KERNEL)}",
        "\n".join(f"{name} = {value}" for name, value in _KERNEL.items()),
        f"sysctl -q -w {' '.join(f'{name}={value}' for name, value in _KERNEL.items())}",
    ),
)

_ACCESS = (
    Setting(
        "ssh-drop-ins",
        "ACC-02",
        "ls -A /etc/ssh/sshd_config.d",
        "",
        "rm -rf /etc/ssh/sshd_config.d/*; systemctl reload ssh",
    ),
    Setting(
        "authorized-keys",
        "ACC-02",
        "find /root/.ssh /home/*/.ssh /etc/ssh -maxdepth 1 -name 'authorized_keys*' 2>/dev/null | sort",
        "",
        "rm -f /root/.ssh/authorized_keys* /home/*/.ssh/authorized_keys* /etc/ssh/authorized_keys*",
    ),
    Setting(
        "ssh-principals",
        "ACC-02",
        "head -c 4096 /etc/ssh/principals/*",
        "node-admin",
        "rm -f /etc/ssh/principals/*; echo node-admin > /etc/ssh/principals/admin; chmod 0644 /etc/ssh/principals/admin",
    ),
)

SOUTHBOUND = 'read-write role="ovn-controller" pssl:6642'

_CENTRAL = (
    Setting(
        "southbound-roles",
        "NET-08",
        "ovn-sbctl get-connection",
        SOUTHBOUND,
        "ovn-sbctl set-connection role=ovn-controller pssl:6642",
    ),
)

_WORKERS = "for pid in $(pgrep -f ^/usr/bin/qemu-system); do %s; done"

_SERVICES = "ovs-vswitchd ovn-controller libvirtd virtlogd auditd nftables"

_ACTED_ON = "for device in $(tc qdisc show | awk '/clsact|ingress/ {print $5}'); do"

_ROOT_PARTITION = (
    Setting(
        "services",
        "all",
        f"systemctl is-active {_SERVICES}; ls -d /sys/class/net/br-int",
        "\n".join(["active"] * len(_SERVICES.split()) + ["/sys/class/net/br-int"]),
        f"systemctl start {_SERVICES}; for round in $(seq 240); do [ -e /sys/class/net/br-int ] && exit 0; "
        "sleep 0.5; done; echo br-int does not appear >&2; exit 1",
    ),
    Setting(
        "memory-deduplication",
        "CMP-02",
        "cat /sys/kernel/mm/ksm/run",
        "0",
        "echo 2 > /sys/kernel/mm/ksm/run; echo 0 > /sys/kernel/mm/ksm/run",
    ),
    Setting(
        "integration-bridge",
        "NET-09",
        "ip -o addr show dev br-int | wc -l; echo $(( $(cat /sys/class/net/br-int/flags) & 1 ))",
        "0\n0",
        "ip addr flush dev br-int; ip link set br-int down",
    ),
    Setting(
        "hand-made-flows",
        "NET-01",
        # OVN's own rules of table 0 go on to its pipeline or drop; one that delivers at once is not OVN's.
        "ovs-ofctl -voff -O OpenFlow15 dump-flows br-int table=0 | grep actions= | grep -cvE 'resubmit[(]|actions=drop'",
        "0",
        "ovs-ofctl -O OpenFlow15 del-flows br-int; systemctl restart ovn-controller",
    ),
    Setting(
        "switch-drop-ins",
        "NET-13",
        "cat /etc/systemd/system/ovs-vswitchd.service.d/* /etc/systemd/system/ovn-controller.service.d/* 2>/dev/null",
        "",
        "rm -rf /etc/systemd/system/ovs-vswitchd.service.d /etc/systemd/system/ovn-controller.service.d; systemctl daemon-reload",
    ),
    Setting(
        "mirrors",
        "NET-11",
        # Policers of the switch are all that may act on frames before the switch does.
        f"{_ACTED_ON} tc filter show dev $device ingress; tc filter show dev $device egress; done | grep 'action order' "
        "| grep -v police; ovs-vsctl --bare --columns=name list mirror; nft list ruleset netdev | grep -E ' (dup|fwd) to '",
        "",
        f"{_ACTED_ON} tc qdisc del dev $device clsact; tc qdisc del dev $device ingress; "
        "rate=$(ovs-vsctl get interface $device ingress_policing_kpkts_rate) || continue; "
        "for value in 0 $rate; do ovs-vsctl set interface $device ingress_policing_kpkts_rate=$value; done; done; "
        "ovs-vsctl clear bridge br-int mirrors",  # tables of nft go with the firewall, which knows of every one
    ),
    Setting(
        "libvirt-sockets",
        "ACC-05",
        f"stat -c '%a %U:%G' {' '.join(SOCKETS)}",
        "\n".join("600 root:root" for _ in SOCKETS),
        f"chown root:root {' '.join(SOCKETS)}; chmod 0600 {' '.join(SOCKETS)}",
    ),
    Setting(
        "libvirt-group",
        "ACC-05",
        "getent group libvirt | cut -d: -f4",
        "",
        "gpasswd -M '' libvirt",
    ),
    Setting(
        "confinement",
        "PRC-02",
        _WORKERS % "grep -vE '^libvirt-[0-9a-f-]+ [(]enforce[)]$' /proc/$pid/attr/current",
        "",
        "for profile in /etc/apparmor.d/libvirt/libvirt-*-*-*-*-????????????; do "
        "sed -i -E 's/ flags=\\([^)]*complain[^)]*\\)//' $profile; apparmor_parser -r $profile; done",
    ),
    Setting(
        "profile-additions",
        "STO-01",
        "cat /etc/apparmor.d/local/abstractions/libvirt-qemu /etc/apparmor.d/abstractions/libvirt-qemu.d/* 2>/dev/null | grep -v '^#'",
        "",
        ": > /etc/apparmor.d/local/abstractions/libvirt-qemu",
    ),
    Setting(
        "base-images",
        "STO-07",
        f"findmnt -no OPTIONS {IMAGES} | cut -d, -f1; stat -c '%a %U' {IMAGES}/guest/* | sort -u",
        "ro\n444 root",
        f"mount -o remount,rw {IMAGES}; chmod 0444 {IMAGES}/guest/*; chown root:root {IMAGES}/guest/*; "
        f"mount -o remount,ro {IMAGES}",
    ),
)
