"""Which domains of an inventory are judged by the reference of a machine, and which are not yet. Pure.

Every domain is in exactly one of the two tables; `tests/unit/inventory/test_reference.py` asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping

# Judged: with the source of what a lab adds to the golden reading.
JUDGED: Mapping[str, str] = {
    "image": "the golden reading",
    "file": "the golden reading, the identity that was handed over, and files of services",
    "account": "the golden reading",
    "group": "the golden reading",
    "password": "the golden reading",
    "login file": "the golden reading",
    "access file": "the golden reading, and names of the machine",
    "authority": "the golden reading",
    "kernel": "the golden reading",
    "kernel code": "the golden reading, and what the manager and libvirt load for services and guests",
    "kernel key": "the golden reading",
    "kernel report": "the golden reading, and a known report at the first tunnelled frame",
    "module": "the golden reading, and modules that services load",
    "module parameter": "the golden reading, and parameters of these modules",
    "manager's environment": "the golden reading",
    "unit": "the golden reading, and what a service's start changes",
    "unit file": "the golden reading",
    "profile": "the golden reading, and a profile of each guest",
    "profile namespace": "the golden reading",
    "address": "the golden reading, and the interfaces of the topology",
    "route": "the golden reading, and the interfaces of the topology",
    "rule": "the golden reading, and strongSwan's rule",
    "setting": "the golden reading, and settings of the interfaces of the topology",
    "listener": "the golden reading, and sockets of services",
    "namespace": "the golden reading, and namespaces of services and workers",
    "database remote": "sockets of the databases' servers",
    "audit": "the golden reading",
    "libvirt hook": "the golden reading",
    "libvirt network": "the golden reading",
    "libvirt filter": "the golden reading",
    "libvirt secret": "the golden reading, and the keys of tenants' volumes",
    "guest kept": "the golden reading",
    "host device": "the golden reading",
    "xfrm setting": "the golden reading, and strongSwan's setting",
    "xfrm policy": "policies between the tunnels' ends",
    "xfrm state": "keys between the tunnels' ends, with their algorithm",
    "flow group": "there is none",
    "bridge entry": "the golden reading, and multicast addresses of the interfaces of the topology",
    "queue": "the golden reading, and queues of the interfaces of the topology",
    "mount": "the golden reading, and parts of it that services and workers see",
    "control group": "the golden reading, and control groups of services and guests",
    "device": "the golden reading, and the interfaces of the topology",
    "block device": "the golden reading",
    "neighbour": "there is none that lasts",
    "bridge port": "there is none",
    "old packet filter": "there is none",
    "virtual server": "there is none",
    "sockets of a family without a list": "there is none",
    "switch Mirror": "there is none",
    "switch NetFlow": "there is none",
    "switch sFlow": "there is none",
    "switch IPFIX": "there is none",
    "switch Flow_Sample_Collector_Set": "there is none",
    "switch Manager": "there is none",
    "switch Controller": "there is none",
    "switch QoS": "there is none",
    "switch Queue": "there is none",
    "switch AutoAttach": "there is none",
    "switch CT_Timeout_Policy": "there is none",
    "switch Open_vSwitch": "the row that the identity and ovn-controller make",
    "switch SSL": "files of the identity",
    "switch Datapath": "the row that the switch makes",
    "switch CT_Zone": "limits of connections, of which NET-12 reads the numbers",
    "switch Flow_Table": "the row that ovn-controller makes",
    "switch Bridge": "br-int, without anything that leads past ovn-controller",
    "switch Port": "interfaces of guests and ends of tunnels, without VLANs and bonds",
    "switch Interface": "interfaces of guests and ends of tunnels, with their options",
    "link": "the golden reading, and the interfaces of the topology",
    "process": "the golden reading, and processes of services and of workers",
}
# Not judged yet, with the reason.
NOT_JUDGED: Mapping[str, str] = {
    "image file": "only golden readings have it: with it a change that was taken back is no finding",
    "unread": "it is a gap, not a state; a gap in a judged domain makes the control inconclusive",
    "kernel thread": "their names come and go with work that the kernel has, and say little",
    "sshd": "sshd cannot be asked before it has a key; the files that it reads are judged, ACC-02 logs in",
    "sshd file": "sshd cannot be asked before it has a key; its files are judged as files",
    "guest": "DEV-01 compares each guest's live XML, QEMU's answers and the guest's own view",
    "pool": "plan compares pools and volumes",
    "filter": "plan compares the limits of guests' interfaces",
    "class": "plan compares the limits of guests' interfaces",
    "nft": "plan compares the rules and sets of the firewall with its files",
    "datapath": "limits and ports follow from the switch's database",
    "flow": "NET-01 walks over all tables, and compares them with those of a second ovn-controller",
    "flow meter": "NET-01 compares meters with those that a second ovn-controller makes",
    "switch": "tables that no lab has rows in",
    "switch port": "NET-01 compares settings of ports with those of a second switch",
    "northbound": "plan compares every table, row and column",
    "southbound": "northd and the nodes write it; NET-01 walks over the flows that follow from it",
}


def why_not(domain: str) -> str | None:
    """Return why a domain is not judged, or None; the first word of a domain may name a family of tables."""
    if domain in JUDGED:
        return None
    return NOT_JUDGED.get(domain) or NOT_JUDGED.get(domain.partition(" ")[0])


def judged(domain: str) -> bool:
    """Return whether a domain is judged."""
    return domain in JUDGED
