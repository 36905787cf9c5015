"""Volumes at rest on a node: what their files hold, and which keys open them."""

from __future__ import annotations

import secrets
import time

from checks.support import hostile_volumes
from checks.support.encryption_breaches import BREACHES, has_volume
from checks.support.judging import judging
from testbed.errors import InstrumentError
from testbed.model.topology import POOLS, Guest
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.devices import observe
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.storage import encryption

_TIMEOUT = 240.0  # seconds
_CANARY = 32  # octets, repeated
_FOLDERS = "/var/lib/libvirt/qemu"
# Where libvirt, its workers and our own commands write: files of a disk, and those in memory.
_PLACES = (POOLS, "/etc", "/var/lib/libvirt", _FOLDERS, "/var/log", "/root", "/run", "/tmp", "/var/tmp")  # noqa: S108
_GUESTS_CANARY = "what a guest has written"
_SHOWN = 6


def _needs_volume(context: BreachContext) -> str | None:
    if has_volume(context):
        return None
    return f"no guest on {context.node.name} has a volume, so there is nothing at rest to encrypt"


@check(
    id="STO-06",
    objective="Volumes are encrypted, with a key for each tenant that is in no file of the node",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=_needs_volume,
    breaches=BREACHES,
)
def test_volumes_are_encrypted(fleet: Fleet, node: MachineView) -> None:
    guests = [guest for guest in fleet.topology.guests_on(node.name) if guest.volumes]
    faults = _secrets(fleet, node, guests)
    kind = node.read(f"findmnt -rno FSTYPE {_FOLDERS} || true").splitlines()
    if kind[-1:] != ["tmpfs"]:
        faults.append(
            f"{_FOLDERS}, where libvirt wraps secrets, is on {kind[-1] if kind else 'the root disk'}"
        )
    with judging(f"the volumes on {node.name}"):
        views = {view.name: view for view in observe.domains(fleet, node)}
        for guest in guests:
            view = views[guest.domain]
            faults += encryption.graph(guest, view.xml, view.answers["disks"])
        if not faults:  # a plain volume cannot be opened with a key
            faults += _attacked(fleet, node, guests)
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"


def _secrets(fleet: Fleet, node: MachineView, guests: list[Guest]) -> list[str]:
    started = time.time()
    held = fleet.lab.nodes[node.name].hypervisor.secrets()
    fleet.evidence.record(node.name, "secrets", "XML of each secret", held, started)
    told = {
        uuid: node.run(f"virsh -q secret-get-value {uuid} >/dev/null 2>&1").status == 0
        for uuid in sorted(held)
    }
    with judging(f"the secrets of {node.name}"):
        return encryption.secrets(sorted({guest.tenant for guest in guests}), held, told)


def _attacked(fleet: Fleet, node: MachineView, guests: list[Guest]) -> list[str]:
    """Let each guest write a canary, then read files and try keys on the node."""
    canaries = {guest: secrets.token_bytes(_CANARY) for guest in guests}
    keys = {guest.tenant: fleet.volume_key(guest) for guest in guests}
    written = {
        guest: (canary * hostile_volumes.HEAD)[: hostile_volumes.HEAD] for guest, canary in canaries.items()
    }
    texts = {f"{_GUESTS_CANARY} ({guest.label})": canary for guest, canary in canaries.items()}
    for tenant, key in keys.items():
        texts |= {f"the key of {tenant} ({form})": octets for form, octets in encryption.forms(key).items()}
    request = {
        "volumes": [[guest.disks[1], _tried(guest, keys)] for guest in guests],
        "head": hostile_volumes.HEAD,
        "texts": {name: octets.hex() for name, octets in texts.items()},
        "places": [*_PLACES],
    }
    with hostile_volumes.overwritten(fleet, guests, written.__getitem__):
        for guest, octets in written.items():
            read = [
                "dd",
                f"if={hostile_volumes.VOLUME}",
                f"bs={hostile_volumes.HEAD}",
                "count=1",
                "iflag=direct",
            ]
            if fleet.in_guest(guest, read) != octets:
                raise InstrumentError(
                    f"{guest.label} does not read back what it has written",
                    fact=f"the first {hostile_volumes.HEAD} octets of {hostile_volumes.VOLUME} differ",
                    remedy="repeat the check",
                )
        answer = node.python(hostile_volumes.PROGRAM.read_text(), request, _TIMEOUT, function="collect")
    wanted = {guest.disks[1]: octets.hex() for guest, octets in written.items()}
    return encryption.searched(answer, wanted, [*texts], len(_PLACES))


def _tried(guest: Guest, keys: dict[str, bytes]) -> dict[str, str]:
    """Return the keys to try on a guest's volume, by name."""
    others = {f"the key of {tenant}": key.decode() for tenant, key in keys.items() if tenant != guest.tenant}
    return {encryption.OWN: keys[guest.tenant].decode(), "any key": secrets.token_hex(32), **others}
