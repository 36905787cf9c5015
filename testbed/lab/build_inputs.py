"""Inputs of a lab besides its topology: images, environment, saved memory and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from testbed import data_files as packaged
from testbed.drivers.capabilities import canary
from testbed.drivers.host.ownership import require_trust
from testbed.drivers.host.workspace import cache_root
from testbed.drivers.images.cache import Image, ImageCache
from testbed.drivers.snapshots.checkpoint import Checkpoint
from testbed.drivers.snapshots.machine_memory import MemorySnapshot, SnapshotStore
from testbed.engine.place import Progress
from testbed.errors import TestbedError
from testbed.model.environment import Accelerator, Environment
from testbed.model.topology import Topology
from testbed.plan.libvirt_xml.machine import Hardware
from testbed.plan.resources import Inputs


@dataclass(frozen=True, slots=True)
class BuildInputs:
    """Inputs of a lab: images, environment of the outer machine, saved memory and checkpoint."""

    images: dict[str, Image]
    environment: Environment
    memories: Mapping[Hardware, MemorySnapshot | str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    @property
    def plan_inputs(self) -> Inputs:
        """The inputs of the desired state, in addition to the topology."""
        return Inputs(self.environment, {name: image.digest for name, image in self.images.items()})


def prepare_inputs(progress: Progress, *, want: Accelerator | None = None) -> BuildInputs:
    """Bake missing images and measure how virtual machines run on this machine.

    Raises:
        ImageError: an image could not be baked.
        MachineError: this machine cannot run the lab.

    """
    cache = ImageCache(cache_root(), packaged.playbooks())
    return _build_inputs(cache.ensure(progress), want)


def load_inputs(*, want: Accelerator | None = None) -> BuildInputs:
    """Return the existing inputs, for commands that read a lab and build nothing.

    Raises:
        ImageError: an image is missing.
        MachineError: this machine cannot run the lab.

    """
    return _build_inputs(ImageCache(cache_root(), packaged.playbooks()).baked(), want)


def outlook(*, want: Accelerator | None = None) -> BuildInputs:
    """Return the likely inputs of a lab, for `plan`; nothing is baked or booted.

    Images that are not baked have no digest yet; how virtual machines run is as it was found last, or as is
    likely.
    """
    images = ImageCache(cache_root(), packaged.playbooks()).foreseen()
    return BuildInputs(images, canary.likely(cache_root(), want=want))


def _build_inputs(images: dict[str, Image], want: Accelerator | None) -> BuildInputs:
    require_trust(cache_root(), shared=True)
    return BuildInputs(images, canary.environment(images["node"], cache_root(), want=want))


def attach_snapshots(
    inputs: BuildInputs, topology: Topology, progress: Progress, *, save: bool
) -> BuildInputs:
    """Return the inputs with the saved memory that a lab's machines can start from.

    Args:
        inputs: inputs without saved memory.
        topology: topology of the lab.
        progress: receives messages.
        save: whether to boot and save machines for which no state fits; if this fails, they boot.

    """
    store = SnapshotStore(cache_root(), inputs.images, inputs.environment)
    wanted = [Hardware.of(machine, inputs.environment) for machine in topology.machines]
    if save:
        try:
            store.ensure(wanted, progress)
        except TestbedError as error:
            progress(f"machines boot: {error.what}: {error.fact}")
    return replace(inputs, memories={hardware: store.find(hardware) for hardware in wanted})
