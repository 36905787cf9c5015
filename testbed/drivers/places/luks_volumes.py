"""A tenant's volumes as LUKS containers, the libvirt secret that opens them, and their removal.

docs/decisions/0041 has the reasons. The key of a volume reaches a node on standard input of qemu-img, and in
a message to libvirtd, which keeps it in memory alone.
"""

from __future__ import annotations

from shlex import quote
from xml.etree import ElementTree as ET

from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.places.volume_keys import VolumeKeys, fingerprint
from testbed.model.topology import ENCRYPTED, LUKS_HEADER, POOLS, Topology, volume_secret
from testbed.plan.diff import Action
from testbed.plan.libvirt_xml.elements import sub
from testbed.plan.libvirt_xml.machine import parsed
from testbed.plan.resources import HELD_KEY, Key, Kind, Properties
from testbed.topology_file.schema import is_name

_MARK = "testbed key "  # of a secret's description, before the fingerprint
# The key has 256 random bits, so that its derivation need not be slow (RFC 8018, 4.2). The time is in
# milliseconds; QEMU makes at least 1000 rounds.
_FORM = "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256,iter-time=10"
TRIES = 5  # to make a container
_HEAD = -(-LUKS_HEADER // 2**20)  # MiB of a container that are overwritten when it is removed


def capacity(file: str, octets: int) -> int:
    """Return the size of the volume in a file of a length, both in bytes."""
    return octets - LUKS_HEADER if file.endswith(ENCRYPTED) else octets


def make(path: str, size: int) -> str:
    """Return the commands that make a container; their standard input is the key.

    QEMU measures how long a key takes, and gives up on a busy node ("Unable to get accurate CPU usage"), so
    it is asked again. The commands fail if the data do not begin where they are expected.

    Args:
        path: a word of a shell.
        size: bytes of the volume.

    """
    create = (
        f"qemu-img create -q -f luks --object secret,id=key,file=/dev/stdin -o key-secret=key,{_FORM} "
        f"{path} {size}"
    )
    return (
        f'key=$(cat); tries={TRIES}; until printf %s "$key" | {create}; do tries=$((tries - 1)); '
        f"[ $tries -gt 0 ] || exit 1; sleep 1; done; [ $(stat -c %s {path}) = {size + LUKS_HEADER} ]"
    )


def filled(source: str, path: str) -> list[str]:
    """Return the command that makes a container with the octets of a raw file; its standard input is the key.

    Every octet is written, since a hole of a container reads as random octets.
    """
    key = ["--object", "secret,id=key,file=/dev/stdin", "-o", f"key-secret=key,{_FORM}"]
    return ["qemu-img", "convert", "-q", "-f", "raw", "-O", "luks", *key, source, path]


def wipe(path: str) -> str:
    """Return the commands that remove a disk of a guest and leave none of its content on the node (STO-04).

    Of a container only the slots of keys are overwritten: without them the rest cannot be read (SP 800-88,
    cryptographic erase). Any other file is overwritten whole.
    """
    name = quote(path)
    if path.endswith(ENCRYPTED):
        erase = f"dd if=/dev/zero of={name} bs=1M count={_HEAD} conv=notrunc,fsync status=none"
    else:
        erase = f"shred -n 0 -z -- {name}"
    return f"[ ! -f {name} ] || [ -L {name} ] || {erase}; rm -f -- {name}"


def _name(uuid: str, root: ET.Element) -> str:
    """Return the tenant that a secret belongs to, or its UUID; the name comes from a node, and may be any."""
    tenant = (root.findtext("usage/volume") or "").removeprefix(f"{POOLS}/")
    return tenant if is_name(tenant) and volume_secret(tenant) == uuid else uuid


def observed(
    node: str, hypervisor: Hypervisor, keys: VolumeKeys, topology: Topology
) -> dict[Key, Properties]:
    """Return the secrets of a node's libvirt; one that belongs to no tenant is called by its UUID."""
    here = {guest.tenant for guest in topology.guests_on(node) if guest.volumes}
    found: dict[Key, Properties] = {}
    for uuid, xml in hypervisor.secrets().items():
        root = parsed(xml)
        name = _name(uuid, root)
        marked = f"{_MARK}{fingerprint(keys.key(node, name))}" if name in here else ""
        found[Key(node, Kind.VOLUME_KEY, name)] = {
            "key": str(HELD_KEY["key"]) if marked and root.findtext("description") == marked else "another",
            "ephemeral": root.get("ephemeral", "no"),
            "private": root.get("private", "no"),
        }
    return found


def repair(action: Action, hypervisor: Hypervisor, keys: VolumeKeys) -> None:
    """Define the secret of a tenant on a node, or remove a secret.

    The key of a tenant that is gone is removed as well: what is left of its volumes cannot be read again.
    """
    node, name = action.key.place, action.key.name
    if action.resource is not None:
        define(node, name, hypervisor, keys)
    elif is_name(name):
        hypervisor.undefine_secret(volume_secret(name))
        keys.forget(node, name)
    else:
        hypervisor.undefine_secret(name)


def define(
    node: str,
    tenant: str,
    hypervisor: Hypervisor,
    keys: VolumeKeys,
    *,
    ephemeral: str = "yes",
    private: str = "yes",
) -> None:
    """Define the secret of a tenant on a node in place of the one that is there.

    libvirt does not let a secret become private or public later.
    """
    key = keys.key(node, tenant)
    bare, marked = (
        _described(tenant, mark, ephemeral, private) for mark in ("", f"{_MARK}{fingerprint(key)}")
    )
    hypervisor.undefine_secret(volume_secret(tenant))
    hypervisor.define_secret(bare, key, marked)


def _described(tenant: str, mark: str, ephemeral: str, private: str) -> str:
    """Return the description of the secret with the key of a tenant's volumes."""
    root = ET.Element("secret", ephemeral=ephemeral, private=private)
    sub(root, "uuid", volume_secret(tenant))
    sub(root, "description", mark)
    sub(sub(root, "usage", type="volume"), "volume", f"{POOLS}/{tenant}")
    return ET.tostring(root, encoding="unicode")
