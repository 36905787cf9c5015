"""Disks of guests, whose contents a node never reads: no device, mount or program lies over them."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from checks.support import hostile_volumes
from checks.support.breaches import needs_guest, shell_breach
from checks.support.judging import judging
from testbed import payload
from testbed.errors import InstrumentError
from testbed.model.topology import POOLS
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.storage import signatures, volumes
from testbed.verify.witnesses.worker_processes import observed

_PROGRAM = Path(payload.__file__).parent / "volume_readers.py"
_TIMEOUT = 180.0  # seconds
_LOSETUP = "/usr/sbin/losetup"
_RULE = "/run/udev/rules.d/99-breach.rules"
_UNIT = "breach-reader"
_MAPPED = "breach-volume"
_SECTORS = 64  # of the mapped device
_SHOWN = 6


def _volume(context: BreachContext) -> str:
    return context.guest.disks[-1]


def _detach(context: BreachContext) -> str:
    """Return commands that remove each loop device over a volume, and the driver."""
    file = _volume(context)
    return (
        f"for device in $(losetup -nO NAME -j {file}); do losetup -d $device; done; udevadm settle; "
        f'modprobe -r loop; [ -z "$(losetup -nO NAME -j {file})" ]'
    )


def _attached(context: BreachContext) -> str:
    return f"losetup -nO NAME -j {_volume(context)} 2>/dev/null | grep -q ."


@check(
    id="STO-08",
    objective="No node interprets disks of its guests: no program reads them, no device lies over them",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "a loop device with its partitions lies over a guest's volume",
            opens=lambda context: f"losetup -r -P -f {_volume(context)}",
            closes=_detach,
            shows=_attached,
        ),
        shell_breach(
            "a rule of udev attaches a guest's volume when a device changes",
            opens=lambda context: (
                f"modprobe loop && mkdir -p {_RULE.rpartition('/')[0]} && "
                f'echo \'ACTION=="change", KERNEL=="vda", RUN+="{_LOSETUP} -r -f {_volume(context)}"\' '
                f">{_RULE} && udevadm control --reload"
            ),
            closes=lambda context: f"rm -f {_RULE}; udevadm control --reload; {_detach(context)}",
            shows=lambda _: f"test -e {_RULE}",
        ),
        shell_breach(
            "the device mapper has a device over a guest's volume",
            opens=lambda context: (
                f"losetup -r -f {_volume(context)} && echo 0 {_SECTORS} linear "
                f"$(losetup -nO NAME -j {_volume(context)}) 0 | dmsetup create --readonly {_MAPPED}"
            ),
            closes=lambda context: (
                f"dmsetup remove --retry {_MAPPED} 2>/dev/null; {_detach(context)} && modprobe -r dm_mod"
            ),
            shows=lambda _: f"dmsetup info {_MAPPED} >/dev/null 2>&1",
        ),
        shell_breach(
            "a program of the node has a guest's volume open",
            opens=lambda context: (
                f"systemd-run -q --collect --unit={_UNIT} -p StandardInput=file:{_volume(context)} "
                "sleep infinity"
            ),
            closes=lambda _: f"systemctl stop {_UNIT} 2>/dev/null; ! systemctl is-active -q {_UNIT}",
            shows=lambda _: f"systemctl is-active -q {_UNIT}",
        ),
    ),
)
def test_no_disk_is_interpreted(fleet: Fleet, node: MachineView) -> None:
    guests = [guest for guest in fleet.topology.guests_on(node.name) if guest.volumes]
    octets = signatures.disguise(*_pool(node))
    workers = {worker.pid for worker in observed(fleet, node).workers}
    with hostile_volumes.overwritten(fleet, guests, lambda _: octets):
        answer = node.python(_PROGRAM.read_text(), {"pools": POOLS}, _TIMEOUT, function="collect")
        hostile_volumes.require_written(fleet, node, dict.fromkeys(guests, octets))
    with judging(f"the disks of guests on {node.name}"):
        faults = volumes.interpreted(answer, workers)
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"


def _pool(node: MachineView) -> tuple[str, UUID]:
    """Return label and UUID of the file system of all volumes, under whose name guests' volumes appear.

    Raises:
        InstrumentError: the node does not show them.
    """
    text = node.read(f"findmnt -rno LABEL,UUID {POOLS}")
    try:
        label, identity = text.split()
        return label, UUID(identity)
    except ValueError as error:
        raise InstrumentError(
            f"the file system of volumes on {node.name} has no name",
            fact=repr(text[:80]),
            remedy="run `testbed up --rebuild`",
        ) from error
