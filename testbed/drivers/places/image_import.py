"""Imports the images of a topology: a copy in the lab's folder, then the gate of a node (STO-03).

docs/decisions/0042 has the reasons. Octets of an image are passed on here, and read by the gate alone.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from shlex import join, quote
from uuid import uuid4

from testbed.drivers.host.payload_program import import_gate, with_modules
from testbed.drivers.host.private_files import OWNER, make_folder, write_secret
from testbed.drivers.places import luks_volumes
from testbed.drivers.ssh.client import Host
from testbed.errors import ProvisioningError, UsageError
from testbed.model.topology import Image, Topology
from testbed.plan.host_config import image_import
from testbed.topology_file.quantities import MIB, format_size
from testbed.untrusted import bounded_json
from testbed.untrusted.text import line

_BESIDE = 16 * MIB  # octets of an image beside those of its volume
_SECONDS = 60  # of CPU time for an image
_HERE = "@FOLDER@"  # of `testbed.payload.images.node_import`
_SHOWN = 200
_PROGRAM = """\
import json, sys
from testbed.payload.images.node_import import volume
octets = sys.stdin.buffer.read()
print(json.dumps(volume({request!r}, octets[:{size}], octets[{size}:])))
"""


def copied(folder: Path, image: Image) -> Path:
    """Return the place of the copy of an image in the folder of a lab's images."""
    return folder / hashlib.sha256(image.file.encode()).hexdigest()[:32]


def stored(folder: Path, image: Image) -> bytes:
    """Return the octets of the copy of an image.

    Raises:
        ProvisioningError: there is no copy.

    """
    try:
        return copied(folder, image).read_bytes()
    except OSError as error:
        raise ProvisioningError(
            f"the image {image.file} cannot be imported",
            fact=f"the lab's folder has no copy of it: {error.strerror}",
            remedy="run `testbed up` with the topology file",
        ) from error


def copy(topology: Topology, beside: Path, folder: Path) -> None:
    """Copy the images of a topology into a folder, where later commands find them.

    Args:
        topology: the topology.
        beside: the folder of the topology file.
        folder: for the copies.

    Raises:
        UsageError: an image is no regular file, or is too large for its volume.

    """
    for guest in topology.guests:
        for volume in guest.volumes:
            if volume.image:
                octets = _octets(beside / volume.image.file, volume.size + _BESIDE)
                make_folder(folder, OWNER)
                write_secret(copied(folder, volume.image), octets)


def _octets(path: Path, most: int) -> bytes:
    """Return the octets of a regular file; its last component is not followed if it is a link."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(file, "rb") as opened:
            state = os.fstat(file)
            if not stat.S_ISREG(state.st_mode):
                raise _unusable(path, "it is no regular file")
            octets = opened.read(most + 1)
    except (OSError, ValueError) as error:
        fact = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _unusable(path, fact) from error
    if len(octets) > most:
        raise _unusable(path, f"it has more than the {format_size(most)} that its volume allows")
    return octets


def _unusable(path: Path, fact: str) -> UsageError:
    return UsageError(
        f"the image {path} cannot be imported",
        fact=fact,
        remedy="name a regular file, no link, whose disk fits the volume",
    )


def make_volume(host: Host, image: Image, octets: bytes, size: int, path: str, key: bytes) -> None:
    """Make a container at a path of a node, and write the disk in an image into it.

    Args:
        host: the node.
        image: the image.
        octets: its content.
        size: of the volume in bytes.
        path: of the new container, which only root may read.
        key: of the container.

    Raises:
        ProvisioningError: the gate refuses the image, or the import fails.

    """
    program = _PROGRAM.format(
        request={
            "gate": import_gate(),
            "command": image_import.command(uuid4().hex, _HERE, size, _SECONDS),
            "form": image.form,
            "size": size,
            "seconds": _SECONDS,
            "encrypt": luks_volumes.filled(f"{_HERE}/out/image", path),
        },
        size=len(octets),
    )
    text = with_modules(program, ["images.node_import"])
    told = host.must(
        f"umask 077; rm -f {quote(path)}; {join(['python3', '-IS', '-c', text])}",
        stdin=octets + key,
        timeout=4 * _SECONDS + size / MIB,
    )
    try:
        answer = bounded_json.read(told)
    except ValueError:
        answer = None
    refused = (
        answer.get("refused", "the node has no answer")
        if isinstance(answer, dict)
        else "the node has no answer"
    )
    failed = answer.get("failed", "") if isinstance(answer, dict) else ""
    if refused != "" or failed:
        raise ProvisioningError(
            f"the image {image.file} cannot be imported on {host.name}",
            fact=line(str(refused or failed))[:_SHOWN],
            remedy="write it again with `qemu-img convert -O qcow2`, without a backing file; see "
            "docs/reference/topology-file.md",
        )
