"""Saving a running lab as a checkpoint, and the checkpoint that a lab can start from."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import content_store as caches
from testbed.drivers.host import process
from testbed.drivers.host.content_store import crowded, file_digest, remove_tree
from testbed.drivers.host.private_files import OWNER, copy_secret, copy_secrets, make_folder, write_secret
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Hypervisor, library_version
from testbed.drivers.images.cache import Image
from testbed.drivers.snapshots.checkpoint import (
    DOMAIN,
    MANIFEST,
    MEMORY,
    NAME,
    NUMBERS,
    Checkpoint,
    named,
    stored,
)
from testbed.drivers.snapshots.machine_memory import differences, processor
from testbed.engine.place import Progress
from testbed.errors import ProvisioningError, UsageError
from testbed.model.environment import Accelerator, Environment
from testbed.model.numbers import Numbers
from testbed.model.topology import Machine, Topology

FORMAT = 3
_PREFIX = "checkpoint-"
_NEEDED = 2**30  # bytes of free space for each machine
_SAVE = timeouts.MEMORY_SAVE


def refusal(environment: Environment, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return why nodes cannot be saved while their tenants run, or the empty string.

    With KVM on AMD, saving a machine while it runs nested guests is undefined behaviour (Linux,
    running-nested-guests).
    """
    amd = environment.outer is Accelerator.KVM and "AuthenticAMD" in cpuinfo.read_text()
    return "KVM on AMD's processors cannot save a machine in which guests run" if amd else ""


class CheckpointStore:
    """The checkpoints of a cache folder, for labs on this outer machine.

    Args:
        cache: folder of the cache.
        images: images of the machines, by name.
        environment: environment of the outer machine.

    """

    def __init__(self, cache: Path, images: Mapping[str, Image], environment: Environment) -> None:
        self._cache = cache
        self._images = images
        self._environment = environment

    def made(self, topology: Topology, workspace: Workspace) -> dict[str, str]:
        """Return the inputs that a saved lab depends on, as text by name."""
        return {
            "format": str(FORMAT),
            "topology": topology.digest,
            "folder": str(workspace.folder),
            "emulator": dict(self._environment.versions).get("qemu", "unknown"),
            "libvirt": str(library_version()),
            "accelerator": f"{self._environment.outer}, {self._environment.inner} inside",
            "processor": processor() if self._environment.outer is Accelerator.KVM else "emulated",
            "images": " ".join(self._images[name].digest for name in sorted(self._images)),
        }

    def find(
        self, resolved: Callable[[Numbers], Topology], workspace: Workspace
    ) -> tuple[Checkpoint, Topology] | None:
        """Return the latest checkpoint that a lab can start from, and the topology with its numbers.

        Args:
            resolved: gives the topology's meaning with the numbers that were given before.

        """
        for item in stored(self._cache):
            if item.lab == workspace.lab:
                with suppress(ProvisioningError):  # of numbers that cannot be read
                    topology = resolved(item.numbers)
                    if not self.unusable(item, topology, workspace):
                        return item, topology
        return None

    def unusable(self, checkpoint: Checkpoint, topology: Topology, workspace: Workspace) -> str:
        """Return why a checkpoint cannot be used for a lab, or the empty string."""
        gone = [
            path
            for name in checkpoint.digests
            for path in checkpoint.machine(name).digests
            if not path.exists()
        ]
        return differences(checkpoint.made, self.made(topology, workspace)) or (
            f"{gone[0]} is gone" if gone else ""
        )

    def save(
        self,
        topology: Topology,
        workspace: Workspace,
        hypervisor: Hypervisor,
        name: str,
        progress: Progress,
        *,
        guests_paused: AbstractContextManager[object],
    ) -> Checkpoint:
        """Save a running lab; a checkpoint of the same name is replaced.

        All machines are paused while they are saved, and resumed afterwards.

        Args:
            topology: topology of the lab.
            workspace: folder of the lab.
            hypervisor: libvirt that runs its machines.
            name: name of the checkpoint.
            progress: learns how long it took.
            guests_paused: pauses the guests of all nodes for a block. QEMU does not load the memory of a node
                whose processor was running a nested guest (docs/decisions/0018).

        Raises:
            UsageError: the name is not valid, or another file in the cache has it.
            ProvisioningError: there is not enough space, or a machine cannot be saved; no partial checkpoint
                is left.

        """
        if not NAME.fullmatch(name):
            raise UsageError(
                f"a checkpoint cannot be called {name!r}",
                fact=f"it must match {NAME.pattern}",
                remedy="choose another name",
            )
        caches.claim(self._cache)
        if fact := crowded(self._cache, _NEEDED * len(topology.machines)):
            raise ProvisioningError(
                "there is no room for a checkpoint",
                fact=fact,
                remedy="remove one with `testbed checkpoint rm`",
            )
        target, partial = (
            self._cache / f"{_PREFIX}{name}",
            self._cache / f"{_PREFIX}{name}.partial-{secrets.randbelow(10**12)}",
        )
        if target.exists() and name not in {item.name for item in stored(self._cache)}:
            fact, remedy = f"{target} is something else", "choose another name, or remove that by hand"
            raise UsageError(f"a checkpoint cannot be called {name}", fact=fact, remedy=remedy)
        made, start = self.made(topology, workspace), time.monotonic()
        try:
            with caches.written(partial):
                stood = _write(partial, topology, workspace, hypervisor, guests_paused)
                names = [machine.name for machine in topology.machines]
                with ThreadPoolExecutor(max_workers=2) as pool:
                    digests = dict(
                        zip(names, pool.map(lambda name: _digests(partial / "m" / name), names), strict=True)
                    )
                saved = datetime.now(UTC).isoformat(timespec="seconds")
                manifest = {
                    "name": name,
                    "lab": topology.name,
                    "saved": saved,
                    "made": made,
                    "digests": digests,
                }
                write_secret(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
                caches.replace(partial, target)
        except OSError as error:
            raise ProvisioningError(
                f"the lab {topology.name} cannot be saved", fact=str(error), remedy="run the command again"
            ) from error
        finally:
            if partial.exists():
                remove_tree(partial)
        progress(
            f"saved {topology.name} as {name} in {time.monotonic() - start:.0f} s; it stood still for "
            f"{stood:.0f} s"
        )
        return named(self._cache, name)


def _write(
    partial: Path,
    topology: Topology,
    workspace: Workspace,
    hypervisor: Hypervisor,
    guests_paused: AbstractContextManager[object],
) -> float:
    """Write all files of a lab but the manifest; return the seconds for which the lab stood still."""
    copy_secret(workspace.topology_file, partial / "topology.yaml")
    write_secret(partial / NUMBERS, Numbers.of(topology).text().encode())
    copy_secrets(workspace.pki, partial / "pki")
    start = time.monotonic()
    with guests_paused, _standing_still(hypervisor, topology):
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(
                pool.map(
                    lambda machine: _save(hypervisor, topology, machine, workspace, partial),
                    topology.machines,
                )
            )
        return time.monotonic() - start


@contextmanager
def _standing_still(hypervisor: Hypervisor, topology: Topology) -> Iterator[None]:
    """Pause all machines of a lab during the block; resume each of them also after an error."""
    with ExitStack() as paused:
        for machine in topology.machines:
            domain = machine.domain(topology.name)
            paused.callback(hypervisor.resume, domain)
            hypervisor.suspend(domain)
        yield


def _save(
    hypervisor: Hypervisor, topology: Topology, machine: Machine, workspace: Workspace, partial: Path
) -> None:
    """Write the memory, the domain and copies of the files of a paused machine."""
    folder, domain = partial / "m" / machine.name, machine.domain(topology.name)
    make_folder(folder.parent, OWNER)
    make_folder(folder, OWNER)
    write_secret(folder / DOMAIN, hypervisor.live_xml(domain).encode())
    hypervisor.monitor(domain).save_memory(folder / MEMORY, _SAVE)
    for path in workspace.machine(machine.name).iterdir():
        if path.is_file():
            copy_secret(path, folder / path.name)


def _digests(folder: Path) -> dict[str, str]:
    """Return the digests of a machine's files by name, and of qcow2 files under them by path."""
    below = [base for path in folder.glob("*.qcow2") if (base := _backing(path)).suffix == ".qcow2"]
    return {
        path.name if path.parent == folder else str(path): file_digest(path)
        for path in (*sorted(folder.iterdir()), *sorted(below))
    }


def _backing(overlay: Path) -> Path:
    tool = process.require("qemu-img", package="qemu-utils")
    argv = [tool, "info", "-U", "--output=json", str(overlay)]
    told = process.run(argv, what=f"cannot read the disk {overlay}", timeout=timeouts.DISK)
    return Path(json.loads(told)["full-backing-filename"])
