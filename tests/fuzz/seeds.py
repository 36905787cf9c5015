"""Well-formed input of the parsers in `tests.fuzz.targets`; the mutations start from it."""

from __future__ import annotations

import json

from testbed.inventory.records import FORMAT
from testbed.model.environment import Accelerator, Environment
from testbed.model.topology import Topology
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.plan.libvirt_xml.machine import MachineFiles, machine_xml
from testbed.report.result import CheckResult, Proof, ProofVerdict, Run, Verdict, to_json


def _json(*values: object) -> bytes:
    return "\n".join(map(json.dumps, values)).encode()


ANSWERS = (
    _json(
        {
            "ready": True,
            "listening": ["tcp/80"],
            "interfaces": [{"label": "app", "interface": "eth0", "address": "10.0.0.2"}],
            "error": "",
            "seen": ["tb-0123abcd-cell1-x."],
        }
    ),
    _json(
        {
            "alive": True,
            "overflowed": False,
            "dropped": 0,
            "down": [],
            "self_test": True,
            "records": [
                {
                    "kind": "frame",
                    "token": "tb-0123abcd-cell1-abc.",
                    "mac": "02:00:00:00:00:01",
                    "ip": "10.0.0.1",
                    "target": "10.0.0.2",
                    "label": "app",
                    "at": 1.5,
                    "until": 2.5,
                    "times": 3,
                    "frame": "ff" * 60,
                },
                {
                    "kind": "arp-request",
                    "token": "",
                    "mac": "02:00:00:00:00:01",
                    "target": "10.0.0.2",
                    "label": "app",
                },
                {
                    "kind": "dhcp",
                    "token": "01abcdef",
                    "label": "app",
                    "frame": "00" * 12 + "0800" + "45" + "00" * 60,
                },
            ],
            "strays": [{"frame": "ff" * 20, "label": "app"}],
            "results": [{"id": "use0before", "sent": True, "answer": "ok", "state": "open", "error": ""}],
        }
    ),
    _json(
        {
            "value": [
                {
                    "hardware-address": "02:00:00:00:00:01",
                    "ip-addresses": [
                        {"ip-address": "10.0.0.2", "ip-address-type": "ipv4"},
                        {"ip-address": "fe80::1", "ip-address-type": "ipv6"},
                    ],
                }
            ]
        }
    ),
)

AGENT = (
    _json(
        [
            {"value": 1000},
            {"count": 4, "buf-b64": "Zm91cg==", "eof": False},
            {"count": 0, "buf-b64": "", "eof": True},
            {"value": {}},
            {"value": 1001},
            {"count": 4, "eof": False},
            {"value": {}},
        ]
    ),
)

SESSION = (
    b"done 0 0 5 3\nhelloerr",
    b"data 1 4\nfourdata 1 0\nlate 0\n",
    b"data 1 2\nabdone 0 128 0 0\ndone 0 1 1 1\nab",
)

LEDGER = (
    _json(
        {
            "nftables": [
                {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
                {
                    "set": {
                        "name": "refused",
                        "size": 4096,
                        "elem": [
                            {
                                "elem": {
                                    "val": {"concat": ["10.0.0.1", "10.0.0.2", "tcp", 22]},
                                    "timeout": 600,
                                    "expires": 595,
                                }
                            }
                        ],
                    }
                },
                {
                    "rule": {
                        "family": "inet",
                        "table": "testbed",
                        "expr": [
                            {
                                "match": {
                                    "op": "==",
                                    "left": {"payload": {"protocol": "udp", "field": "dport"}},
                                    "right": 53,
                                }
                            },
                            {"counter": {"packets": 3, "bytes": 180}},
                            {"accept": None},
                        ],
                    }
                },
                {
                    "rule": {
                        "expr": [
                            {
                                "match": {
                                    "op": "in",
                                    "left": {"ct": {"key": "state"}},
                                    "right": ["established", "related"],
                                }
                            },
                            {"counter": {"packets": 9, "bytes": 900}},
                            {"accept": None},
                        ]
                    }
                },
                {
                    "rule": {
                        "expr": [
                            {
                                "match": {
                                    "op": "==",
                                    "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                                    "right": {"set": [22, {"range": [6641, 6642]}]},
                                }
                            },
                            {"counter": {"packets": 1, "bytes": 60}},
                            {"accept": None},
                        ]
                    }
                },
            ]
        }
    ),
)

_RULES = b"""\
 cookie=0x1, table=0, priority=180,vlan_tci=0x0000/0x1000 actions=conjunction(100,2/2)
 cookie=0x1, table=0, priority=100,in_port=1 actions=set_field:0x1->reg13,set_field:0x5/0xf->reg1,resubmit(,8)
 cookie=0x1, table=8, priority=100,ip,reg14=0x1,dl_src=02:00:00:00:00:01,nw_src=10.0.0.2 actions=resubmit(,9)
 cookie=0x1, table=8, priority=90,ipv6,ipv6_src=fd00::2 actions=ct(table=9,zone=NXM_NX_REG13[0..15],nat)
 cookie=0x1, table=9, priority=65,ct_state=-new+est-rel+rpl-inv+trk,tcp,tp_dst=80 \
actions=move:NXM_NX_REG1[0..3]->NXM_NX_XXREG0[124..127],ct(commit,zone=NXM_NX_REG13[0..15],exec(set_field:0/0x1->ct_mark)),output:2
 cookie=0x1, table=9, priority=60,icmp6,icmp_type=135,nd_target=fd00::2 \
actions=clone(push:NXM_OF_IN_PORT[],set_field:ANY->in_port,resubmit(,10),pop:NXM_OF_IN_PORT[])
 cookie=0x1, table=9, priority=50,arp,arp_op=1,arp_spa=10.0.0.2 \
actions=load:0x2->NXM_OF_ARP_OP[],IN_PORT,controller(userdata=00.00.00.02,pause)
 cookie=0x1, table=9, priority=0 actions=drop
 cookie=0x1, table=10, priority=1,metadata=0x3 actions=note:01.02,group:3,output:"tap0",learn(table=1)
"""
FLOWS = (_RULES, *(line for line in _RULES.splitlines() if b"conjunction" not in line))

_INTERFACES = {
    "headings": ["name", "ofport", "options"],
    "data": [
        ["tap0", 1, ["map", []]],
        ["ovn-b", 9, ["map", [["remote_ip", "172.20.1.2"], ["key", "flow"]]]],
    ],
}
BRIDGE = (b" cookie=0x1, table=0, priority=1 actions=drop\n\n" + _json(_INTERFACES),)

_UUID = ["uuid", "00000000-0000-4000-8000-000000000001"]
SETTINGS = (
    _json(
        {"headings": ["name"], "data": [["m0"]]},
        {"headings": ["name", "external_ids"], "data": [["tap0", ["map", [["iface-id", "red-web-app"]]]]]},
    ),
    b"table inet testbed {\n\tset claims {\n\t\ttype ifname . "
    b'ipv6_addr\n\t\telements = { "tap00" . fd00::2 }\n\t}\n'
    b"\tchain input {\n\t\ttype filter hook input priority filter; policy "
    b"drop;\n\t\ttcp dport 22 accept\n\t}\n}\n",
    b"src 10.0.0.1/32 dst 10.0.0.2/32 proto udp \\\tdir out priority 0 ptype "
    b"main \\\ttmpl src 0.0.0.0 dst 0.0.0.0\\\t"
    b"\tproto esp reqid 1 mode transport\\\t\n",
)

CONF = (
    b'# a comment\nsecurity_driver = [ "apparmor", "none" '
    b']\nsecurity_default_confined = 1\nx = """long\ntext"""\n',
)

INVENTORY = (
    _json(
        {"format": FORMAT, "records": 2, "seconds": 1.5},
        {"domain": "file", "key": "/etc/x", "value": {"mode": "0600"}},
        {"domain": "unread", "key": "flow", "value": "no ovs-ofctl"},
    )
    + b"\n",
)


def results() -> tuple[bytes, ...]:
    """Return the text of a ``result.json``."""
    proofs = (Proof(ProofVerdict.PROVEN, "a breach", "why", ("green",)),)
    checks = [
        CheckResult(
            "NET-01", "fleet", "it holds", "high", verdict, "why", False, 1.5, ("evidence/x",), proofs
        )
        for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.NOT_APPLICABLE)
    ]
    run = Run(
        "lab",
        "ab12",
        {"outer": "tcg", "inner": "kvm"},
        "2026-01-01T00:00:00+00:00",
        9.5,
        tuple(checks),
        (),
        ("one",),
        ("NET-01", "NET-02"),
        ("NET",),
    )
    return (_json(to_json(run)),)


def southbound(topology: Topology) -> tuple[bytes, ...]:
    """Return the bindings of all ports and the nodes, as ``ovn-sbctl`` prints both tables."""
    nics = [(guest, nic) for guest in topology.guests for nic in guest.nics]
    bindings = [[nic.port, ["set", [nic.port_security]], _UUID, True] for _, nic in nics]
    names = [[_UUID, topology.nodes[0].name, topology.nodes[0].name]]
    tables = (
        {"headings": ["logical_port", "port_security", "chassis", "up"], "data": bindings},
        {"headings": ["_uuid", "name", "hostname"], "data": names},
    )
    return (_json(*tables).replace(b"\n", b"\n\n"),)


def domains(topology: Topology) -> tuple[bytes, ...]:
    """Return the XML of a guest and of a machine."""
    environment = Environment(Accelerator.TCG, Accelerator.KVM, 4.0, "/usr/bin/qemu-system-x86_64")
    files = MachineFiles("/k", "/i", ("/a", "/b", "/c"), "/id", "/console")
    machine = machine_xml(topology, topology.nodes[0], environment, files, {"interfaces": ["a"]})
    return tuple(text.encode() for text in (guest_xml(topology, topology.guests[0], {"memory": 1}), machine))
