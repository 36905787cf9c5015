"""What a machine needs to know about itself, as the files of one archive (D4).

The machine unpacks it below /run before its network is up; see ``playbooks/roles/base``. Pure: keys come
in as text, nothing is read or written.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.model.topology import Machine, Plane, Role, Testbed
from testbed.plan.libvirt_xml.machine import machine_id

_PUBLIC = ("systemd/", "testbed/hosts", "testbed/hostname", "testbed/machine-id")


@dataclass(frozen=True, slots=True)
class MachineKeys:
    """Secrets and certificates of one machine, as text."""

    host_key: bytes
    host_certificate: bytes
    user_authority: str
    tls_key: bytes
    tls_certificate: bytes
    tls_authority: bytes
    administrators_authority: bytes


def tunnel_peers(lab: Testbed, machine: Machine) -> tuple[str, ...]:
    """Return the tunnel addresses that a node accepts Geneve from (NET-08)."""
    if machine.role is not Role.NODE:
        return ()
    own = str(machine.address(Plane.FABRIC))
    return tuple(end for end in lab.tunnel_ends if end != own)


def northbound_clients(lab: Testbed, machine: Machine) -> tuple[str, ...]:
    """Return the management addresses that may talk to OVN's northbound database on a machine."""
    return administrators(lab) if machine.role is Role.CONTROLLER else ()


def southbound_clients(lab: Testbed, machine: Machine) -> tuple[str, ...]:
    """Return the management addresses that may talk to OVN's southbound database on a machine."""
    if machine.role is not Role.CONTROLLER:
        return ()
    return tuple(sorted(str(node.address(Plane.MANAGEMENT)) for node in lab.nodes))


def administrators(lab: Testbed) -> tuple[str, ...]:
    """Return the addresses from which machines accept ssh."""
    return (str(lab.lab_network(Plane.MANAGEMENT).gateway),)


def identity_files(lab: Testbed, machine: Machine, keys: MachineKeys) -> dict[str, bytes]:
    """Return path (relative to /run) and content of every file of a machine's identity."""
    files: dict[str, bytes] = {
        "testbed/hostname": f"{machine.name}\n".encode(),
        "testbed/machine-id": f"{machine_id(machine.uuid)}\n".encode(),
        "testbed/hosts": f"127.0.0.1 localhost\n127.0.1.1 {machine.name}\n".encode(),
        "testbed/ssh/host_key": keys.host_key,
        "testbed/ssh/host_key-cert.pub": keys.host_certificate,
        "testbed/ssh/user_ca.pub": keys.user_authority.encode() + b"\n",
        "testbed/ssh/listen.conf": f"ListenAddress {machine.address(Plane.MANAGEMENT)}\n".encode(),
        "testbed/nftables/identity.nft": _nftables(lab, machine).encode(),
        "testbed/ovn/key.pem": keys.tls_key,
        "testbed/ovn/certificate.pem": keys.tls_certificate,
        "testbed/ovn/ca.pem": keys.tls_authority,
    }
    for nic in machine.nics:
        network = lab.lab_network(nic.plane).network
        name = f"{nic.plane}0"
        files[f"systemd/network/10-{name}.link"] = (
            f"[Match]\nMACAddress={nic.mac}\n\n[Link]\nName={name}\n".encode()
        )
        files[f"systemd/network/10-{name}.network"] = (
            f"[Match]\nMACAddress={nic.mac}\n\n[Network]\nAddress={nic.address}/{network.prefixlen}\n"
            "LinkLocalAddressing=no\nIPv6AcceptRA=no\nLLDP=no\n"
        ).encode()
    if machine.role is Role.CONTROLLER:
        files["testbed/ovn/administrators.pem"] = keys.administrators_authority
    if machine.role is Role.NODE:
        files["testbed/ovn/chassis.sh"] = _chassis(lab, machine).encode()
    if tunnel_peers(lab, machine):
        files["testbed/swanctl/swanctl.conf"] = tunnel_protection(lab, machine).encode()
        files["testbed/swanctl/private/node.pem"] = keys.tls_key
        files["testbed/swanctl/x509/node.pem"] = keys.tls_certificate
        files["testbed/swanctl/x509ca/ca.pem"] = keys.tls_authority
    return files


def address_sets(lab: Testbed, machine: Machine) -> dict[str, tuple[str, ...]]:
    """Return the addresses of each set that the firewall's rules refer to."""
    return {
        "administrators": administrators(lab),
        "tunnel_peers": tunnel_peers(lab, machine),
        "northbound_clients": northbound_clients(lab, machine),
        "southbound_clients": southbound_clients(lab, machine),
    }


def _nftables(lab: Testbed, machine: Machine) -> str:
    sets = address_sets(lab, machine)
    return "".join(
        f"add element inet testbed {name} {{ {', '.join(addresses)} }}\n"
        for name, addresses in sets.items()
        if addresses
    )


_PEER = """  {peer} {{
    version = 2
    mobike = no
    proposals = aes128gcm16-prfsha256-ecp256
    local_addrs = {own_address}
    remote_addrs = {address}
    dpd_delay = 60s
    unique = replace
    local {{
      certs = node.pem
      id = {own}
    }}
    remote {{
      cacerts = ca.pem
      id = {peer}
    }}
    children {{
      tunnels {{
        mode = transport
        local_ts = dynamic[udp]
        remote_ts = dynamic[udp]
        esp_proposals = aes128gcm16-ecp256
        start_action = trap|start
        close_action = trap
        dpd_action = trap
      }}
    }}
  }}
"""


def tunnel_protection(lab: Testbed, machine: Machine) -> str:
    """Return strongSwan's connections of a node: UDP to another node's fabric address is encrypted or not
    sent (NET-08, RFC 4301).
    """
    own = str(machine.address(Plane.FABRIC))
    peers = [node for node in lab.nodes if node.name != machine.name]
    blocks = [
        _PEER.format(own=machine.name, own_address=own, peer=peer.name, address=peer.address(Plane.FABRIC))
        for peer in peers
    ]
    return f"connections {{\n{''.join(blocks)}}}\n"


def _chassis(lab: Testbed, machine: Machine) -> str:
    controller = lab.controller.address(Plane.MANAGEMENT)
    settings = (
        f"system-id={machine.name}",
        f"hostname={machine.name}",
        f"ovn-remote=ssl:{controller}:6642",
        "ovn-encap-type=geneve",
        f"ovn-encap-ip={machine.address(Plane.FABRIC)}",
    )
    keys = " ".join(f"/run/testbed/ovn/{name}.pem" for name in ("key", "certificate", "ca"))
    pairs = " ".join(f"external_ids:{setting}" for setting in settings)
    return f"exec ovs-vsctl --no-wait set-ssl {keys} -- set Open_vSwitch . {pairs}\n"


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the archive of some files: deterministic, public files 0644, the others 0600, every folder
    0755.
    """
    stream = io.BytesIO()
    folders: set[str] = set()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, content in sorted(files.items()):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if folder not in folders:
                    folders.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644 if path.startswith(_PUBLIC) else 0o600
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
