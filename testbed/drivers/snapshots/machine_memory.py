"""Saved memory of machines, taken during boot before they have an identity.

docs/decisions/0014 has the reasons. A state is a folder of the image cache with the memory, the overlays that
belong to it and a manifest. Its key is the digest of all inputs that the saved memory depends on. So a state
of another emulator, machine type, accelerator or image is never used; the reason is reported if no state
fits.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from testbed import timeouts
from testbed.drivers.host import content_store as caches
from testbed.drivers.host import process
from testbed.drivers.host.content_store import (
    MEMORY,
    crowded,
    entries,
    file_digest,
    publish,
    remove_tree,
    require_unaltered,
    take_back,
)
from testbed.drivers.host.private_files import create, write_public
from testbed.drivers.host.process import as_root
from testbed.drivers.hypervisor.connection import library_version
from testbed.drivers.images.cache import Image
from testbed.drivers.snapshots import golden_inventory
from testbed.drivers.snapshots.capture import CaptureJob
from testbed.engine.place import Progress, Step
from testbed.errors import ImageError
from testbed.model.environment import Accelerator, Environment
from testbed.model.topology import Role
from testbed.plan.libvirt_xml.guest import anonymous_guest_xml
from testbed.plan.libvirt_xml.machine import GUEST_TO_SAVE, Hardware, MachineFiles, anonymous_xml

FORMAT = 2
_KEPT = 4  # states; each is some 200 MiB
_NEEDED = 2 * 2**30  # bytes of free space for one state
_BOOT = timeouts.MEMORY_BOOT
_MANIFEST = MEMORY
GOLDEN = "golden-"  # how names of states begin
_NOWHERE = MachineFiles("kernel", "initrd", ("vda", "vdb", "vdc"), "", "console")


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """A machine's saved memory, with its disks.

    Args:
        saved: time (ISO 8601).
        made: the inputs that it depends on, see `SnapshotStore.made`.
        digests: SHA-256 (hexadecimal) of each file.

    """

    role: str
    key: str
    folder: Path
    saved: str
    made: dict[str, str]
    digests: dict[str, str]

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum((self.folder / name).stat().st_size for name in self.digests)

    @property
    def memory(self) -> Path:
        """File of the memory."""
        return self.folder / "memory"

    @property
    def disks(self) -> list[Path]:
        """The saved overlays, in the order vda, vdb, vdc."""
        return sorted(self.folder / name for name in self.digests if name.endswith(".qcow2"))

    def verify(self) -> None:
        """Compare every file with its recorded digest.

        Raises:
            ImageError: a file is missing or has changed.

        """
        what = f"the saved {self.role} is not what was saved"
        require_unaltered(self.folder, self.digests, what, self.role)

    def verify_one(self, name: str) -> None:
        """Compare one file with its recorded digest; raises like `verify`."""
        what = f"the saved {self.role} is not what was saved"
        require_unaltered(self.folder, {name: self.digests.get(name, "none")}, what, self.role)

    def use(self) -> None:
        """Record that a machine starts from it, in the manifest's modification time."""
        with suppress(OSError):  # the cache may belong to another account
            os.utime(self.folder / _MANIFEST)


def images_under(images: Mapping[str, Image], role: Role) -> list[Image]:
    """Return the images that a machine is made from."""
    return [images[role], *([images["guest"]] if role is Role.NODE else [])]


def base_disks(images: Mapping[str, Image], role: Role) -> list[Path]:
    """Return the images under a machine's disks, in the order vda, vdb, vdc."""
    image = images[role]
    if role is not Role.NODE:
        return [image.file("disk.qcow2")]
    return [image.file("disk.qcow2"), images["guest"].file("volume.qcow2"), image.file("pool.qcow2")]


def make_overlay(base: Path, overlay: Path) -> Path:
    """Make an empty qcow2 overlay on an image, readable only for its owner.

    An existing overlay is replaced.
    """
    overlay.unlink(missing_ok=True)
    os.close(create(overlay))
    tool = process.require("qemu-img", package="qemu-utils")
    argv = [tool, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(overlay)]
    process.run(argv, what=f"cannot make the disk {overlay}", timeout=timeouts.DISK)
    return overlay


def stored(folder: Path) -> list[MemorySnapshot]:
    """Return every state in a cache folder, the most recently used first."""
    found = []
    for path, told in entries(folder, MEMORY):
        with suppress(FileNotFoundError):  # another process may be removing it
            found.append(((path / _MANIFEST).stat().st_mtime, MemorySnapshot(**told, folder=path)))
    return [saved for _, saved in sorted(found, key=lambda item: item[0], reverse=True)]


def prune(folder: Path, images: Set[str] | None = None) -> list[Path]:
    """Delete all but the most recently used states and return the deleted folders.

    Args:
        folder: folder of the cache.
        images: digests of the present images; states of other images are deleted, too.

    Raises:
        MachineError, UsageError: the cache folder is not ours.

    """
    caches.require(folder)
    found = stored(folder)
    fitting = [saved for saved in found if images is None or images >= set(saved.made["images"].split())]
    doomed = [saved.folder for saved in found if saved not in fitting[:_KEPT]]
    remove_tree(*doomed)
    return doomed


class SnapshotStore:
    """The saved memory in a cache folder, for given images on this outer machine."""

    def __init__(self, folder: Path, images: Mapping[str, Image], environment: Environment) -> None:
        self._folder = folder
        self._images = images
        self._environment = environment

    def made(self, hardware: Hardware) -> dict[str, str]:
        """Return the inputs that a machine's memory depends on, as text by name."""
        kvm = self._environment.outer is Accelerator.KVM
        shape = anonymous_xml(hardware, self._environment, _NOWHERE, "", {})
        return {
            "format": str(FORMAT),
            "emulator": dict(self._environment.versions).get("qemu", "unknown"),
            "libvirt": str(library_version()),
            "accelerator": str(self._environment.outer),
            "processor": processor() if kvm else "emulated",
            "hardware": str(hardware),
            "images": " ".join(image.digest for image in images_under(self._images, hardware.role)),
            "domain": hashlib.sha256(shape.encode()).hexdigest()[:16],
            "inventory": golden_inventory.program_digest(),
            "guest": hashlib.sha256(anonymous_guest_xml().encode()).hexdigest()[:16]
            if hardware.role is Role.NODE
            else "none",
        }

    def find(self, hardware: Hardware) -> MemorySnapshot | str:
        """Return the state for machines of some hardware, or why there is no usable one."""
        made = self.made(hardware)
        others = [saved for saved in stored(self._folder) if saved.role == hardware.role]
        for saved in others:
            if saved.made == made and saved.key == _key(made):
                return saved
        if not others:
            return f"no {hardware.role} has been saved yet"
        return f"the saved {hardware.role} cannot be used: {differences(others[0].made, made)}"

    def ensure(self, wanted: Iterable[Hardware], progress: Progress) -> None:
        """Save the missing states, two at a time.

        Raises:
            ImageError, ProvisioningError: a machine could not be saved; no partial state is left.

        """
        unique = list(dict.fromkeys(wanted))
        if self._missing(unique):
            with caches.adding(self._folder, progress):
                self._save_all(self._missing(unique), progress)

    def _missing(self, wanted: Iterable[Hardware]) -> list[Hardware]:
        return [hardware for hardware in wanted if isinstance(self.find(hardware), str)]

    def _save_all(self, missing: Sequence[Hardware], progress: Progress) -> None:
        if fact := crowded(self._folder, _NEEDED * len(missing)):
            raise ImageError(
                "cannot save machines", fact=fact, remedy="free some space, or use --cold to do without"
            )
        for image in {
            image.folder: image for hardware in missing for image in images_under(self._images, hardware.role)
        }.values():
            image.verify()
        progress(Step.planned(len(missing)))
        with ThreadPoolExecutor(max_workers=2) as pool:
            for done in [pool.submit(self._save, hardware, progress) for hardware in missing]:
                done.result()
        prune(self._folder)

    def _save(self, hardware: Hardware, progress: Progress) -> None:
        made = self.made(hardware)
        target = self._folder / f"{GOLDEN}{hardware.role}-{_key(made)}"
        partial = self._folder / f"{target.name}.partial-{os.getpid()}"
        progress(Step.begun(repr(hardware), f"booting a {hardware} once, to save its memory"))
        start = time.monotonic()
        try:
            partial.mkdir()
            partial.chmod(0o755)
            self._freeze(hardware, partial, golden_inventory.digest_key(_key(made)))
            take_back(partial)
            kept = [partial / "memory", partial / golden_inventory.FILE, *sorted(partial.glob("*.qcow2"))]
            digests = {path.name: file_digest(path) for path in kept}
            for path in partial.iterdir():
                path.chmod(0o444)
            saved = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = {
                "role": hardware.role,
                "key": _key(made),
                "saved": saved,
                "made": made,
                "digests": digests,
            }
            write_public(partial / _MANIFEST, json.dumps(manifest, indent=1).encode())
            publish(partial, target)
        except OSError as error:
            raise ImageError(
                f"cannot save a {hardware}", fact=str(error), remedy="use --cold to do without saved memory"
            ) from error
        finally:
            if partial.exists():
                remove_tree(partial)
        progress(Step.ended(repr(hardware), f"saved a {hardware} in {time.monotonic() - start:.0f} s"))

    def _freeze(self, hardware: Hardware, partial: Path, key: str) -> None:
        image = self._images[hardware.role]
        bases = base_disks(self._images, hardware.role)
        overlays = [
            make_overlay(base, partial / f"vd{letter}.qcow2")
            for base, letter in zip(bases, "abc", strict=False)
        ]
        console = partial / "console.log"
        console.write_bytes(b"")
        guest = partial / "guest.xml"
        guest.write_text(anonymous_guest_xml())
        reader = partial / "reader"
        reader.write_text(golden_inventory.credential(key))
        files = MachineFiles(
            str(image.file("vmlinuz")),
            str(image.file("initrd")),
            tuple(map(str, overlays)),
            identity="",
            console=str(console),
        )
        handed = {GUEST_TO_SAVE: str(guest)} if hardware.role is Role.NODE else {}
        handed[golden_inventory.CREDENTIAL] = str(reader)
        xml = anonymous_xml(hardware, self._environment, files, str(uuid4()), handed)
        given = [*files.disks, str(console), *handed.values()]
        job = CaptureJob(
            xml, given, str(console), str(partial / "memory"), _BOOT * self._environment.slowness
        )
        (partial / "job.json").write_text(json.dumps(asdict(job)))
        process.run(
            [*as_root("--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
             sys.executable, "-m", "testbed.drivers.snapshots.capture", str(partial / "job.json")],
            what=f"cannot save a {hardware}", timeout=job.patience + 300, error=ImageError,
        )  # fmt: skip
        (partial / "job.json").unlink()
        guest.unlink()
        reader.unlink()
        (partial / golden_inventory.FILE).write_bytes(golden_inventory.take(console))


def _key(made: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Return the inputs in which a saved state differs from the required ones, or ""."""
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    return "; ".join(
        f"its {name} is {found.get(name, 'unknown')}, and {wanted[name]} is needed" for name in differing
    )


def processor() -> str:
    """Return a digest of the outer machine's processor, which KVM passes through to machines."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    wanted = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")
    facts = [line for line in lines if line.partition("\t")[0].strip() in wanted]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
