"""Settings of a machine that hold a wall: how each is observed, desired and restored.

They are resources like any other, so that a breach in force shows as drift and ``up`` repairs it
(docs/decisions/0002). Commands run as root on the machine, in one batch, and shared commands run
once; their output is parsed here (`testbed.plan.host_config.parsers`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from testbed.model.topology import IMAGES, LOGS, Machine, Plane, Role, Topology
from testbed.plan.host_config import daemon_limits, helper, image_import, kernel_modules, parsers, trust
from testbed.plan.host_config.identity import address_sets
from testbed.plan.host_config.nd_guard import ATTACH, GUARDS, RULES, allowed, guarded, links
from testbed.plan.libvirt_xml.limits import SLICE, SLICE_WEIGHT, UNITS
from testbed.topology_file.validation import WORKERS_PER_NODE

# A machine answers for an address on that address's network only, forwards nothing and speaks no IPv6
# (NET-09).
KERNEL = {
    "net/ipv4/ip_forward": 0, "net/ipv4/conf/all/rp_filter": 1, "net/ipv4/conf/all/arp_ignore": 2,
    "net/ipv4/conf/all/accept_redirects": 0, "net/ipv6/conf/all/disable_ipv6": 1,
}  # fmt: skip
RULESET = "nft -s list ruleset"
# Filters of every interface that has any; behind a line that names it, as for every interface of a guest.
FILTERS = (
    "cd /sys/class/net; for tap in tap*; do echo interface $tap; done; tc qdisc show | while read -r _ "
    "kind _ _ device _; do "
    "case $kind in clsact|ingress) echo interface $device; "
    "printf 'filter show dev %s ingress\\nfilter show dev %s egress\\n' $device $device | tc -force "
    "-batch - ;; esac; done"
)
_SWITCH = (
    "ovs-vsctl -voff --format=json -- --columns=name list mirror -- --columns=name,external_ids list "
    "interface"
)
_IGNORED = "/sys/module/kvm/parameters/ignore_msrs"
_TRACING = "/proc/sys/kernel/yama/ptrace_scope"
_UNITS = " ".join(f"{path.rpartition('/')[0]}/*" for path in UNITS)
_CONSOLES = "/etc/libvirt/virtlogd.conf"
# Bytes of a file of a guest's console, and older files beside it (DOS-04).
CONSOLE_SIZE, OLDER_CONSOLES = 2**20, 1
_BOUNDED = (
    "# DOS-04: a guest's console takes up to 2 MiB of the root file system: the present file, and one before "
    f"it.\nmax_size = {CONSOLE_SIZE}\nmax_backups = {OLDER_CONSOLES}"
)
# The weight of all guests together: that of the running slice, else that of its unit.
_WEIGHT = f"cat /sys/fs/cgroup/{SLICE}/cpu.weight 2>/dev/null || systemctl show -P CPUWeight {SLICE}"
# Every line of small files, behind the name of its file: an emulated machine needs 30 ms to start a program.
TEXTS = (
    "grep -asH '' /etc/nftables.conf /etc/group /etc/ssh/principals/* "
    "/etc/systemd/system/ovs-vswitchd.service.d/* "
    "/etc/systemd/system/ovn-controller.service.d/* /etc/apparmor.d/local/abstractions/libvirt-qemu "
    f"/etc/apparmor.d/abstractions/libvirt-qemu.d/* {helper.FILES} {_CONSOLES} {_UNITS} "
    f"{daemon_limits.FILES} {kernel_modules.FILES} "
    "/proc/self/mounts /sys/kernel/mm/ksm/run "
    f"/sys/class/net/br-int/flags {_IGNORED} {_TRACING} "
    f"{' '.join(f'/proc/sys/{name}' for name in KERNEL)}"
)
_KVM = "/dev/kvm"
_MAY_USE_KVM = ",".join(f"worker{slot:02d}" for slot in range(WORKERS_PER_NODE))
SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/libvirt-sock-ro", "/run/libvirt/libvirt-admin-sock")
_MODES = f"stat -c '%n %a %U:%G' {' '.join(SOCKETS)} {_KVM} {IMAGES}/guest/*"
_PROFILES = "/etc/apparmor.d/libvirt"
GUEST_RECORDS = "guest-records"
_LOGINS = "find /root/.ssh /home/*/.ssh /etc/ssh -maxdepth 2 2>/dev/null"
_TABLE, _NEIGHBOURS = "inet testbed", "netdev neighbours"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Args:
        name: its name among the settings of the machine.
        controls: ids of the controls whose wall it holds, with spaces between them.
        observe: shell commands, each of which prints something.
        value: the value that must be read from their output.
        repair: shell commands that restore it.
        read: parses the commands' output, without surrounding white space, into the value.

    """

    name: str
    controls: str
    observe: tuple[str, ...]
    value: str
    repair: str
    read: Callable[..., str] = str

    def reading(self, printed: Mapping[str, str]) -> str:
        """Return the observed value, given the output of each command.

        Output that cannot be parsed gives a text that never equals the desired value.
        """
        texts = [printed[command] for command in self.observe]
        try:
            return self.read(*texts)
        except (ValueError, LookupError, TypeError) as error:
            return f"unreadable, {error}: {' '.join(texts)}"


def settings(topology: Topology, machine: Machine) -> tuple[Setting, ...]:
    """Return every setting of a machine."""
    identity = Setting("identity", "ACC-02 NET-08", *trust.identity(topology, machine))
    modules = Setting("module-requests", "ACC-10", *kernel_modules.requests(TEXTS, machine.role))
    network = (*_firewall(topology, machine), *_protection(topology, machine), *_NETWORK)
    common = (*network, *_ACCESS, modules, identity)
    profiles = Setting("worker-profiles", "PRC-02 STO-01 STO-07", *trust.profiles(topology, machine))
    guests = (_claims(topology, machine), _records(topology, machine))
    node = (*_ROOT_PARTITION, *_neighbours(topology, machine), *guests, profiles)
    return (*common, *(node if machine.role is Role.NODE else _CENTRAL))


def _claims(topology: Topology, machine: Machine) -> Setting:
    """Return the setting that no interface claims another's logical port (docs/decisions/0013)."""
    own = [nic for guest in topology.guests_on(machine.name) for nic in guest.nics]
    known = " ".join(f"-e '{nic.tap} {nic.port}'" for nic in own) or "-e none"
    # Prints "interface port" of every claim but the node's own pairs. The repair gives an own tap its port
    # back, and removes any other interface from the bridge.
    foreign = (
        "ovs-vsctl -voff --format=csv --no-headings --columns=name,external_ids list interface "
        f'| sed -nE \'s/^"?([^",]+)"?,.*iface-id="*([^",}}]+).*/\\1 \\2/p\' | grep -vxF {known}'
    )
    back = " ".join(
        f"{nic.tap}) ovs-vsctl set interface $name external_ids:iface-id={nic.port} ;;" for nic in own
    )
    repair = (
        f"{foreign} | while read -r name port; do case $name in {back} *) ovs-vsctl --if-exists del-port "
        "br-int $name ;; esac; done"
    )
    ours = frozenset((nic.tap, nic.port) for nic in own)
    return Setting("port-claims", "NET-13", (_SWITCH,), "", repair, partial(parsers.claims, own=ours))


def _records(topology: Topology, machine: Machine) -> Setting:
    """Return the setting that no profile and no log of a removed guest stays (RES-02).

    libvirt keeps these files when a guest ends, and a console is the guest's data.
    """
    guests = topology.guests_on(machine.name)
    uuids = "|".join(guest.uuid for guest in guests) or "none"
    domains = "|".join(guest.domain for guest in guests).replace(".", "[.]") or "none"
    known = (
        rf"{_PROFILES}/(TEMPLATE\.qemu|libvirt-({uuids})(\.files)?)|"
        rf"{LOGS}/(\.placeholder|({domains})(\.console)?\.log(\.[0-9]+)?)"
    )
    listed = f"find {_PROFILES} {LOGS} -mindepth 1"
    repair = f"{listed} -print0 | grep -zvxE '{known}' | xargs -0r rm -rf --"
    return Setting(GUEST_RECORDS, "RES-02", (listed,), "", repair, partial(parsers.unmatched, known=known))


def _firewall(topology: Topology, machine: Machine) -> tuple[Setting, ...]:
    elements = tuple(
        _address_set(name, addresses) for name, addresses in address_sets(topology, machine).items()
    )
    # The kernel's rules must equal the file's, rule for rule, without another table.
    wanted = "as in the file\n13\ntable inet testbed"
    others = "nft list tables | grep -v -e '^table netdev neighbours$' -e '^table inet testbed$'"
    repair = (
        f"{others} | while read -r _ family name; do nft delete table $family $name; done; nft -f "
        "/etc/nftables.conf"
    )
    read = partial(parsers.firewall, table=_TABLE, others=frozenset({_NEIGHBOURS}))
    return (Setting("firewall", "NET-09 PRC-05", (RULESET, TEXTS), wanted, repair, read), *elements)


def _address_set(name: str, addresses: tuple[str, ...]) -> Setting:
    fill = f"; nft add element inet testbed {name} '{{ {', '.join(addresses)} }}'" if addresses else ""
    return Setting(
        name.replace("_", "-"),
        "NET-08",
        (RULESET,),
        "\n".join(sorted(addresses)),
        f"nft flush set inet testbed {name}{fill}",
        partial(parsers.addresses, table=_TABLE, name=name),
    )


def _neighbours(topology: Topology, machine: Machine) -> tuple[Setting, ...]:
    """Return the settings of the guard in front of guests that have IPv6.

    There are none where no guest of the machine has IPv6.
    """
    devices = " ".join(guarded(topology, machine))
    if not devices:
        return ()
    # The file's rules are loaded in a new network namespace and listed there, so that both sides of the
    # comparison are printed by the same nft. `sed 1,3d` removes the lines of table, chain and hook: only the
    # jump may be left.
    chain = "nft -s list chain netdev neighbours"
    rules = (
        f'file=$(unshare --net sh -c "nft -f {RULES}; {chain} judge"); '
        f'[ -n "$file" ] && [ "$file" = "$({chain} judge)" ] && echo as in the file || echo not as in '
        "the file; "
        f"for device in {devices}; do [ ! -e /sys/class/net/$device ] || "
        f"[ \"$({chain} $device | sed 1,3d | tr -d '\\t\\n')\" = 'jump judge}}}}' ] || echo $device is "
        "not guarded; done"
    )
    attach = f"for device in {devices}; do [ ! -e /sys/class/net/$device ] || {ATTACH} $device; done"
    guard, neighbours, own = GUARDS
    return (
        Setting(guard, "NET-05", (rules,), "as in the file", f"nft -f {RULES}; {attach}"),
        _pairs(neighbours, "NET-01", "allowed", allowed(topology, machine)),
        _pairs(own, "NET-05", "links", links(topology, machine)),
    )


def _pairs(name: str, control: str, held: str, pairs: tuple[tuple[str, str], ...]) -> Setting:
    """Return the setting for a set of the guard: pairs of an interface and a value it may name."""
    lines = sorted(f"{device} . {value}" for device, value in pairs)
    fill = f"; nft add element netdev neighbours {held} '{{ {', '.join(lines)} }}'" if lines else ""
    repair = f"nft flush set netdev neighbours {held}{fill}"
    return Setting(
        name,
        control,
        (RULESET,),
        "\n".join(lines),
        repair,
        partial(parsers.pairs, table=_NEIGHBOURS, name=held),
    )


def _protection(topology: Topology, machine: Machine) -> tuple[Setting, ...]:
    """Return the setting of the kernel's policies for UDP between a node and its peers.

    They must demand ESP in both directions, without an exception.
    """
    peers = address_sets(topology, machine)["tunnel_peers"]
    if not peers:
        return ()
    own = str(machine.address(Plane.FABRIC))
    repair = "ip xfrm policy flush; systemctl restart strongswan"
    read = partial(parsers.protection, own=own, peers=peers)
    return (Setting("tunnel-protection", "NET-08", ("ip -o xfrm policy",), parsers.PROTECTED, repair, read),)


_NETWORK = (
    Setting(
        "network-stack",
        "NET-09",
        (TEXTS,),
        "\n".join(f"{name} {value}" for name, value in KERNEL.items()),
        f"sysctl -q -w {' '.join(f'{name}={value}' for name, value in KERNEL.items())}",
        parsers.kernel,
    ),
)

_ACCESS = (
    Setting(
        "ssh-drop-ins",
        "ACC-02",
        (_LOGINS,),
        "",
        "find /etc/ssh/sshd_config.d -mindepth 1 -delete; systemctl reload ssh",
        partial(parsers.beneath, folder="/etc/ssh/sshd_config.d"),
    ),
    Setting(
        "authorized-keys",
        "ACC-02",
        (_LOGINS,),
        "",
        "rm -f /root/.ssh/authorized_keys* /home/*/.ssh/authorized_keys* /etc/ssh/authorized_keys*",
        partial(parsers.called, start="authorized_keys"),
    ),
    Setting(
        "ssh-principals",
        "ACC-02",
        (TEXTS,),
        "node-admin",
        (
            "rm -f /etc/ssh/principals/*; echo node-admin > /etc/ssh/principals/admin; chmod 0644 "
            "/etc/ssh/principals/admin"
        ),
        partial(parsers.lines, start="/etc/ssh/principals/"),
    ),
)

SOUTHBOUND = 'read-write role="ovn-controller" pssl:6642'

_CENTRAL = (
    Setting(
        "southbound-roles",
        "NET-08",
        ("ovn-sbctl get-connection",),
        SOUTHBOUND,
        "ovn-sbctl set-connection role=ovn-controller pssl:6642",
    ),
    Setting(
        "northbound-connection",
        "NET-08",
        ("ovn-nbctl get-connection",),
        trust.NORTHBOUND,
        f"ovn-nbctl set-connection {trust.NORTHBOUND}",
    ),
)

# AppArmor's label of each QEMU process is in /proc/PID/attr/current. An empty one is printed as "none", which
# is never accepted: a process without a label is unconfined.
_WORKERS = (
    "grep -alE '^/usr/bin/qemu-system' /proc/[0-9]*/cmdline 2>/dev/null | while read -r file; do "
    'label=; read -r label < ${file%cmdline}attr/current; echo "${label:-none}"; done'
)

_SERVICES = "ovs-vswitchd ovn-controller libvirtd virtlogd auditd nftables"

_ACTED_ON = "for device in $(tc qdisc show | awk '/clsact|ingress/ {print $5}'); do"

_ROOT_PARTITION = (
    Setting(
        "services",
        "NET-01 NET-08 NET-09 NET-13 AUD-01",  # by service: `testbed.plan.controls`
        (f"systemctl is-active {_SERVICES}; [ ! -e /sys/class/net/br-int ] || echo br-int",),
        "\n".join((*(f"{name} active" for name in _SERVICES.split()), "br-int is there")),
        f"systemctl start {_SERVICES}; for round in $(seq 240); do [ -e /sys/class/net/br-int ] && exit 0; "
        "sleep 0.5; done; echo br-int does not appear >&2; exit 1",
        partial(parsers.services, names=tuple(_SERVICES.split())),
    ),
    Setting("image-gate", "STO-03", (image_import.LIST,), "", image_import.REMOVE),
    Setting(
        "memory-deduplication",
        "CMP-02",
        (TEXTS,),
        "0",
        # 2 unmerges all pages that are shared already; 0 alone would leave them merged
        "echo 2 > /sys/kernel/mm/ksm/run; echo 0 > /sys/kernel/mm/ksm/run",
        partial(parsers.lines, start="/sys/kernel/mm/ksm/run:"),
    ),
    Setting(
        "unknown-registers",
        "CMP-04",
        (TEXTS,),
        "N",
        f"echo 0 > {_IGNORED}",
        partial(parsers.lines, start=f"{_IGNORED}:"),
    ),
    Setting(
        "process-tracing",
        "BND-02",
        (TEXTS,),
        "2",
        f"echo 2 > {_TRACING}",
        partial(parsers.lines, start=f"{_TRACING}:"),
    ),
    Setting(
        "storage-pools",
        "STO-02",
        ("find /run/libvirt/storage /etc/libvirt/storage -maxdepth 1 -name '*.xml' 2>/dev/null; true",),
        "",
        'virsh -q pool-list --all --name | grep . | while read -r name; do virsh -q pool-destroy "$name"; '
        'virsh -q pool-undefine "$name"; done; true',
    ),
    Setting(
        "guest-units",
        "DOS-02 DOS-03 DOS-05",
        (TEXTS,),
        "".join(UNITS.values()).strip(),
        "; ".join(
            (
                *(f"rm -rf {path.rpartition('/')[0]}; mkdir {path.rpartition('/')[0]}" for path in UNITS),
                *(f"printf %s {shlex.quote(text)} > {path}" for path, text in UNITS.items()),
                "systemctl daemon-reload",
            )
        ),
        partial(parsers.lines, start="/etc/systemd/system/machine"),
    ),
    Setting(
        "guests-weight",
        "DOS-02",
        (_WEIGHT,),
        str(SLICE_WEIGHT),
        f"[ ! -e /sys/fs/cgroup/{SLICE} ] || echo {SLICE_WEIGHT} > /sys/fs/cgroup/{SLICE}/cpu.weight",
    ),
    Setting(
        "console-logs",
        "DOS-04",
        (TEXTS,),
        _BOUNDED,
        # virtlogd keeps its pipes when it starts itself again, and reads the file then
        f"echo {shlex.quote(_BOUNDED)} > {_CONSOLES}; systemctl reload virtlogd",
        partial(parsers.lines, start=f"{_CONSOLES}:"),
    ),
    Setting(
        "domain-folders",
        "STO-06",  # libvirt writes the keys that wrap its workers' secrets there
        (TEXTS,),
        "tmpfs",
        "systemctl start var-lib-libvirt-qemu.mount",
        partial(parsers.mounted, folder="/var/lib/libvirt/qemu"),
    ),
    Setting("swap", "STO-05", ("tail -n +2 /proc/swaps",), "", "swapoff -a"),
    Setting(
        "integration-bridge",
        "NET-09",
        ("ip -o addr show dev br-int", TEXTS),
        "0\n0",
        "ip addr flush dev br-int; ip link set br-int down",
        parsers.bridge,
    ),
    Setting(
        "hand-made-flows",
        "NET-01",
        ("ovs-ofctl -voff -O OpenFlow15 dump-flows br-int table=0",),
        "0",
        "ovs-ofctl -O OpenFlow15 del-flows br-int; systemctl restart ovn-controller",
        parsers.delivering,
    ),
    Setting(
        "switch-drop-ins",
        "NET-13",
        (TEXTS,),
        "",
        (
            "rm -rf /etc/systemd/system/ovs-vswitchd.service.d "
            "/etc/systemd/system/ovn-controller.service.d; systemctl daemon-reload"
        ),
        partial(parsers.lines, start="/etc/systemd/system/ov"),
    ),
    Setting(
        "mirrors",
        "NET-11",
        # Only policers may act on frames before the switch does. The rate is set to 0 and back, since
        # Open vSwitch configures the policers only when the value changes.
        (FILTERS, _SWITCH, RULESET),
        "",
        f"{_ACTED_ON} tc qdisc del dev $device clsact; tc qdisc del dev $device ingress; "
        "rate=$(ovs-vsctl get interface $device ingress_policing_kpkts_rate) || continue; "
        "for value in 0 $rate; do ovs-vsctl set interface $device ingress_policing_kpkts_rate=$value; "
        "done; done; "
        # other tables of nft are deleted by the repair of the setting `firewall`
        "ovs-vsctl clear bridge br-int mirrors",
        parsers.mirrors,
    ),
    Setting(
        "libvirt-sockets",
        "ACC-05",
        (_MODES,),
        "\n".join(f"{socket} 600 root:root" for socket in SOCKETS),
        f"chown root:root {' '.join(SOCKETS)}; chmod 0600 {' '.join(SOCKETS)}",
        partial(parsers.modes, of=SOCKETS),
    ),
    Setting(
        "libvirt-group",
        "ACC-05",
        (TEXTS,),
        "",
        "gpasswd -M '' libvirt",
        partial(parsers.members, group="libvirt"),
    ),
    Setting(
        "hypervisor-device",
        "BND-02",
        (_MODES,),
        f"{_KVM} 660 root:kvm",
        f"chown root:kvm {_KVM}; chmod 0660 {_KVM}",
        partial(parsers.modes, of=(_KVM,)),
    ),
    Setting(
        "hypervisor-group",
        "BND-02",
        (TEXTS,),
        _MAY_USE_KVM,
        f"gpasswd -M {_MAY_USE_KVM} kvm",
        partial(parsers.members, group="kvm"),
    ),
    Setting(
        "confinement",
        "PRC-02",
        (_WORKERS,),
        "",
        "for profile in /etc/apparmor.d/libvirt/libvirt-*-*-*-*-????????????; do "
        "sed -i -E 's/ flags=\\([^)]*complain[^)]*\\)//' $profile; apparmor_parser -r $profile; done",
        parsers.unconfined,
    ),
    Setting("helper-confinement", "PRC-06", *helper.confinement(TEXTS)),
    Setting("libvirt-limits", "DEV-03", *daemon_limits.bounds(TEXTS)),
    Setting(
        "profile-additions",
        "STO-01",
        (TEXTS,),
        "",
        (
            ": > /etc/apparmor.d/local/abstractions/libvirt-qemu; rm -rf "
            "/etc/apparmor.d/abstractions/libvirt-qemu.d"
        ),
        parsers.additions,
    ),
    Setting(
        "base-images",
        "STO-07",
        (TEXTS, _MODES),
        "ro\n444 root:root",
        f"mount -o remount,rw {IMAGES}; chmod 0444 {IMAGES}/guest/*; chown root:root {IMAGES}/guest/*; "
        f"mount -o remount,ro {IMAGES}",
        partial(parsers.read_only, folder=IMAGES),
    ),
)
