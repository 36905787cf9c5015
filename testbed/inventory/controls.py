"""Which control a place of the inventory is about: what endangers whom. Pure.

Every domain has an entry; in some, what stands at the beginning of the key decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from testbed.model.topology import IMAGES, POOLS

DEFAULT = "VMM-04"  # the live configuration equals the desired state
INTEGRITY = "VMM-01"  # the software is what the image holds
KERNEL_CODE = "kernel code"  # a domain
# The first pattern that is found in a key decides; without one, the domain's own.
_PLACES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "file": (
        (rf"^{re.escape(IMAGES)}(/|$)", "STO-07"),
        (rf"^{re.escape(POOLS)}(/|$)", "STO-01"),
        (
            r"^/etc/(ssh|sudoers|pam|security|polkit|passwd|group|shadow|gshadow|subuid|subgid)|authorized_keys|/\.ssh(/|$)",
            "ACC-02",
        ),
        (r"^/(etc|run|var/lib|usr/share)/polkit|^/run/(ssh|sudo)", "ACC-02"),
        (r"^/etc/apparmor|^/var/cache/apparmor|^/var/lib/apparmor", "PRC-02"),
        (r"^/(etc|run)/(modprobe|modules)", f"{INTEGRITY} ACC-10"),
        (r"^/etc/(nftables|sysctl)", "NET-09"),
        (r"^/(etc|var/lib|run)/(openvswitch|ovn)", "NET-08"),
        (r"^/(etc|run|var/lib)/(ipsec|swanctl|strongswan|charon)", "NET-08"),
        (r"^/(etc|run|var/lib|var/run)/libvirt/", "ACC-05"),
        (r"^/etc/audit|^/var/log/audit", "AUD-01"),
        (
            r"^/(usr|lib|lib64|bin|sbin|boot|opt)(/|$)|^/etc/ld\.so|^/etc/systemd|^/run/systemd/(system|generator|transient)",
            INTEGRITY,
        ),
    ),
    "listener": (
        (r"\b(tcp|udp)6? .*:(22)$", "ACC-02"),
        (r"\bunix .*libvirt", "ACC-05"),
        (r"\bunix .*(ovn|openvswitch)", "NET-08"),
        (r"\bpacket ", "NET-11"),
        (r"\b(udp6?) .*:(4789|6081)$", "NET-08"),
        (r"\b(tcp6?) .*:(664[0-9])$", "NET-08"),
        (r"\bunix ", "ACC-05"),
    ),
    "setting": (
        (r" net/", "NET-09"),
        (
            r" kernel/(yama|kptr|dmesg|perf|unprivileged|randomize|modules_disabled|kexec)|protected_",
            "XPL-01",
        ),
        (r" kernel/core_pattern|suid_dumpable", "PRC-01"),
    ),
    "kernel": (
        (r"/mm/ksm", "CMP-02"),
        (r"vulnerabilities", "SCH-02"),
        (r"command line|binfmt_misc", INTEGRITY),
    ),
    KERNEL_CODE: ((r"^bpf at /machine\.slice", "PRC-04"),),
    "mount": ((re.escape(IMAGES), "STO-07"), (re.escape(POOLS), "STO-01"), (r"^mnt of machine", "PRC-01")),
    "process": ((r"^/machine\.slice", "PRC-01"), (r"^\S*/(ovs|ovn)", "NET-01"), (r"^\S*auditd", "AUD-01")),
    "control group": ((r"machine\.slice", "DOS-02"),),
    "unit": (
        (r"^(ovs|ovn|openvswitch)", "NET-01 NET-13"),
        (r"^nftables", "NET-08 NET-09"),
        (r"^(auditd|audit-)", "AUD-01"),
        (r"^ssh", "ACC-02"),
        (r"^(libvirt|virt)", "ACC-05"),
        (r"^apparmor", "PRC-02"),
        (r"^strongswan", "NET-08"),
    ),
    "authority": (
        (r"^/etc/ssh", "ACC-02"),
        (r"openvswitch|ovn|ipsec|swanctl", "NET-08"),
        (r"apt|keyrings", INTEGRITY),
    ),
    "access file": (
        (r"^/etc/(ld\.so|cron)|^/var/spool/cron", INTEGRITY),
        (r"^/etc/(hosts|resolv|nsswitch)", DEFAULT),
    ),
    "switch Interface": ((r"genev|tunnel|ovn-", "NET-08"),),
}
_DOMAINS: Mapping[str, str] = {
    "account": "ACC-02",
    "access file": "ACC-02",
    "address": "NET-09",
    "audit": "AUD-01",
    "authority": "ACC-02",
    "block device": "STO-01",
    "bridge entry": "NET-09",
    "bridge port": "NET-09",
    "class": "NET-12",
    "control group": "DOS-03",
    "database remote": "NET-08",
    "datapath": "NET-01",
    "device": "DEV-02",
    "file": DEFAULT,
    "filter": "NET-11",
    "flow": "NET-01",
    "flow group": "NET-01",
    "flow meter": "NET-12",
    "group": "ACC-02",
    "guest": "DEV-02",
    "guest kept": "DEV-02",
    "host device": "DEV-02",
    "image": INTEGRITY,
    "image file": INTEGRITY,
    "kernel": DEFAULT,
    KERNEL_CODE: "VMM-03",
    "kernel key": INTEGRITY,
    "kernel report": INTEGRITY,
    "kernel thread": INTEGRITY,
    "libvirt filter": "NET-09",
    "libvirt hook": "ACC-05",
    "libvirt network": "NET-09",
    "libvirt secret": "STO-06",
    "link": "NET-09",
    "listener": "NET-09",
    "login file": "ACC-02",
    "manager's environment": INTEGRITY,
    "module": INTEGRITY,
    "module parameter": INTEGRITY,
    "mount": DEFAULT,
    "namespace": "PRC-01",
    "neighbour": "NET-09",
    "nft": "NET-09",
    "old packet filter": "NET-09",
    "password": "ACC-02",
    "pool": "STO-02",
    "process": INTEGRITY,
    "profile": "PRC-02",
    "profile namespace": "PRC-02",
    "queue": "NET-12",
    "route": "NET-09",
    "rule": "NET-09",
    "setting": DEFAULT,
    "sockets of a family without a list": "NET-09",
    "sshd": "ACC-02",
    "sshd file": "ACC-02",
    "switch": "NET-01",
    "switch port": "NET-01",
    "northbound": "NET-01",
    "southbound": "NET-08",
    "unit": DEFAULT,
    "unit file": DEFAULT,
    "unread": DEFAULT,
    "virtual server": "NET-09",
    "xfrm policy": "NET-08",
    "xfrm setting": "NET-08",
    "xfrm state": "NET-08",
}
_FIRST_WORDS = ("nft", "switch", "northbound", "southbound")  # domains whose other words name a table
_TABLES = {
    "switch Mirror": "NET-11",
    "switch Interface": "NET-13",
    "switch SSL": "NET-08",
    "switch Manager": "NET-08",
    "switch Controller": "NET-08",
    "switch Open_vSwitch": "NET-08",
    "switch QoS": "NET-12",
    "switch Queue": "NET-12",
    "switch NetFlow": "NET-11",
    "switch sFlow": "NET-11",
    "switch IPFIX": "NET-11",
    "northbound Mirror": "NET-11",
    "northbound QoS": "NET-12",
    "northbound Meter": "NET-12",
    "northbound DHCP_Options": "NET-06",
    "northbound DNS": "NET-10",
    "northbound Connection": "NET-08",
    "northbound SSL": "NET-08",
}


def known(domain: str) -> bool:
    """Return whether a domain has an entry of its own."""
    return domain in _DOMAINS or domain in _TABLES or domain.partition(" ")[0] in _FIRST_WORDS


def domains() -> frozenset[str]:
    """Return every domain that has an entry of its own."""
    return frozenset({*_DOMAINS, *_TABLES})


def endangered(domain: str, key: str) -> frozenset[str]:
    """Return the controls whose wall a difference in a record may have opened."""
    for pattern, controls in _PLACES.get(domain, ()):
        if re.search(pattern, key):
            return frozenset(controls.split())
    first = domain.partition(" ")[0]
    own = (
        _TABLES.get(domain) or _DOMAINS.get(domain) or (_DOMAINS[first] if first in _FIRST_WORDS else DEFAULT)
    )
    return frozenset(own.split())


def named() -> frozenset[str]:
    """Return every control that something endangers."""
    texts = [
        *_DOMAINS.values(),
        *_TABLES.values(),
        *(controls for places in _PLACES.values() for _, controls in places),
    ]
    return frozenset(" ".join(texts).split())
