"""The image cache: bakes and verifies images, and deletes those without a recipe.

An image is a folder named after the digest of its inputs. It appears in one rename, so that a killed bake
leaves no folder that looks like an image. Images are baked on the outer machine, outside a lab, with the
machine's own network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from testbed import timeouts
from testbed.drivers.host import content_store as caches
from testbed.drivers.host import process
from testbed.drivers.host.content_store import (
    BASE,
    IMAGE,
    clear_leftovers,
    crowded,
    entries,
    file_digest,
    publish,
    remove_tree,
    require_unaltered,
)
from testbed.drivers.host.private_files import write_public
from testbed.drivers.host.process import as_root
from testbed.drivers.images import build
from testbed.drivers.images.build import BuildJob
from testbed.engine.place import Progress, Step
from testbed.errors import ImageError

_VERSION = "1"
_NEEDED = 5 * 2**30
_FULL = 64 * 2**20  # bytes; with less free space than that, an error is reported as a full disk
_FILES = ("disk.qcow2", "vmlinuz", "initrd", "canary", "volume.qcow2", "pool.qcow2")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The inputs of an image.

    Args:
        key: digest (hexadecimal) of this recipe, of every file of its playbook, and of the program that
            assembles it.

    """

    name: str
    suite: str
    playbook: str
    size: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    key: str

    @property
    def base_key(self) -> str:
        """Digest of the inputs of the root file system, before the playbook runs."""
        return hashlib.sha256(json.dumps([_VERSION, self.suite, self.packages]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Image:
    """A baked image.

    Args:
        folder: where its files are.
        digests: SHA-256 (hexadecimal) of each file.

    """

    name: str
    key: str
    folder: Path
    digests: dict[str, str]
    baked: str

    @property
    def digest(self) -> str:
        """One digest for the whole image."""
        return hashlib.sha256(json.dumps(self.digests, sort_keys=True).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.folder / name

    def verify(self) -> None:
        """Compare every file with its recorded digest.

        Raises:
            ImageError: a file is missing or has changed.

        """
        what = f"the image {self.name} is not what was baked"
        require_unaltered(self.folder, self.digests, what, self.name)


class ImageCache:
    """Images under a cache folder, baked from the recipes of a playbook folder.

    Args:
        recipes: name of the file of recipes in the folder of playbooks.

    """

    def __init__(self, folder: Path, playbooks: Path, recipes: str = "images.yaml") -> None:
        self._folder = folder
        self._playbooks = playbooks
        self._recipes = recipes

    def recipes(self) -> dict[str, Recipe]:
        """Return every recipe by image name."""
        text = (self._playbooks / self._recipes).read_text()
        data = yaml.safe_load(text)
        program = Path(build.__file__).read_bytes()
        result = {}
        for name, item in data["images"].items():
            entry = json.dumps([_VERSION, data["suite"], item], sort_keys=True)
            key = hashlib.sha256(
                entry.encode() + self._playbook_digest(item["playbook"]) + program
            ).hexdigest()[:16]
            result[name] = Recipe(
                name,
                data["suite"],
                item["playbook"],
                item["size"],
                tuple(item["packages"]),
                tuple(item["initramfs_modules"]),
                key,
            )
        return result

    def key(self) -> str:
        """Return the hexadecimal digest of all recipes' keys, for caches of pipelines."""
        keys = sorted(f"{recipe.name}-{recipe.key}" for recipe in self.recipes().values())
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]

    def _playbook_digest(self, playbook: str) -> bytes:
        roles = yaml.safe_load((self._playbooks / playbook).read_text())[0]["roles"]
        digest = hashlib.sha256((self._playbooks / playbook).read_bytes())
        for role in roles:
            for path in sorted((self._playbooks / "roles" / role).rglob("*")):
                if path.is_file() and path.parent.name != "__pycache__":  # bytecode is no input
                    digest.update(
                        str(path.relative_to(self._playbooks)).encode() + b"\0" + path.read_bytes() + b"\0"
                    )
        return digest.digest()

    def find(self, recipe: Recipe) -> Image | None:
        """Return the baked image of a recipe, or None.

        Raises:
            ImageError: the image has no valid manifest.
        """
        folder = self._folder / f"{recipe.name}-{recipe.key}"
        if not folder.exists():
            return None
        image = next((image for image in self.stored() if image.folder == folder), None)
        if image is None:
            raise ImageError(
                f"the image {recipe.name} is damaged",
                fact=f"{folder / IMAGE} is not the manifest of this image",
                remedy=f"delete the folder {folder} and run the command again: the image is baked again",
            )
        return image

    def ensure(self, progress: Progress) -> dict[str, Image]:
        """Bake the missing images, two at a time, and return all images by name.

        Raises:
            ImageError: an image could not be baked; no partial image is left.

        """
        recipes = self.recipes()
        if self._missing(recipes):
            with caches.adding(self._folder, progress):
                self._bake_all(self._missing(recipes), progress)
        return self._all(recipes)

    def _missing(self, recipes: Mapping[str, Recipe]) -> list[Recipe]:
        return [recipe for recipe in recipes.values() if self.find(recipe) is None]

    def _bake_all(self, missing: Sequence[Recipe], progress: Progress) -> None:
        self._check_space(len(missing))
        progress(Step.planned(len(missing)))
        with ThreadPoolExecutor(max_workers=2) as pool:
            for done in [pool.submit(self._bake, recipe, progress) for recipe in missing]:
                done.result()

    def baked(self) -> dict[str, Image]:
        """Return every image by name.

        Raises:
            ImageError: one is missing.

        """
        return self._all(self.recipes())

    def foreseen(self) -> dict[str, Image]:
        """Return every image by name, baked or not.

        One that is not baked has no files, and a digest that no baked image has.
        """
        return {
            name: self.find(recipe) or Image(name, recipe.key, self._folder, {}, "")
            for name, recipe in self.recipes().items()
        }

    def _all(self, recipes: dict[str, Recipe]) -> dict[str, Image]:
        return {name: self._found(recipe) for name, recipe in recipes.items()}

    def _found(self, recipe: Recipe) -> Image:
        image = self.find(recipe)
        if image is None:
            fact = f"{self._folder} has no {recipe.name}-{recipe.key}"
            raise ImageError(
                f"the image {recipe.name} is missing", fact=fact, remedy="run `testbed image bake`"
            )
        return image

    def _check_space(self, count: int) -> None:
        if fact := crowded(self._folder, count * _NEEDED):
            what = f"cannot bake {count} image{'s' if count > 1 else ''}"
            remedy = "free some space (`testbed image prune` helps), or point TESTBED_CACHE_DIR elsewhere"
            raise ImageError(what, fact=fact, remedy=remedy)

    def _bake(self, recipe: Recipe, progress: Progress) -> None:
        target = self._folder / f"{recipe.name}-{recipe.key}"
        partial = self._folder / f"{target.name}.partial-{os.getpid()}"
        log = self._folder / f"{recipe.name}.log"
        log.write_text("")
        partial.mkdir()
        progress(Step.begun(recipe.name))
        well = False
        try:
            archive = self._base(recipe, progress, log)
            progress(Step.note(recipe.name, f"image {recipe.name}: applying {recipe.playbook}"))
            job = BuildJob(
                recipe.name,
                str(archive),
                str(partial),
                str(self._playbooks),
                recipe.playbook,
                recipe.size,
                recipe.modules,
                process.require("busybox", package="busybox-static"),
            )
            job.dump(partial / "job.json")
            process.run(
                [*as_root(), sys.executable, "-m", "testbed.drivers.images.build", str(partial / "job.json")],
                what=f"cannot bake the image {recipe.name}",
                timeout=timeouts.IMAGE,
                error=ImageError,
            )
            self._finish(recipe, partial, target)
            well = True
        except (ImageError, OSError) as error:
            told = self._full(recipe, error)
            if told is None:
                raise
            raise told from error
        finally:
            if partial.exists():
                remove_tree(partial)
            progress(
                Step.ended(recipe.name, f"image {recipe.name}: {'ready' if well else 'failed'}", well=well)
            )

    def _full(self, recipe: Recipe, error: Exception) -> ImageError | None:
        """Return the error to raise instead if the disk is full, or None."""
        free = shutil.disk_usage(self._folder).free
        if free > _FULL:
            return None
        return ImageError(
            f"the disk filled up while the image {recipe.name} was baked",
            fact=f"{self._folder} has {free // 2**20} MiB left, and {str(error).splitlines()[0]}",
            remedy=(
                "free some space (`testbed image prune` helps), or point TESTBED_CACHE_DIR elsewhere; "
                "nothing half-done is left"
            ),
        )

    def _base(self, recipe: Recipe, progress: Progress, log: Path) -> Path:
        archive = self._folder / f"base-{recipe.name}-{recipe.base_key}.tar"
        if archive.exists():
            return archive
        progress(
            Step.note(
                recipe.name,
                f"image {recipe.name}: fetching {len(recipe.packages)} packages and what they need",
            )
        )
        partial = self._folder / f"{archive.name}.partial-{os.getpid()}"
        try:
            process.run(
                [
                    process.require("mmdebstrap", package="mmdebstrap"),
                    "--variant=minbase",
                    "--format=tar",
                    f"--include={','.join(recipe.packages)}",
                    recipe.suite,
                    str(partial),
                ],
                what=f"cannot fetch the packages of the image {recipe.name}",
                timeout=timeouts.IMAGE,
                error=ImageError,
                environment={"INITRD": "No"},
                log=log,
            )
            partial.rename(archive)
        finally:
            partial.unlink(missing_ok=True)
        return archive

    def _finish(self, recipe: Recipe, partial: Path, target: Path) -> None:
        (partial / "job.json").unlink()
        digests = {name: file_digest(partial / name) for name in _FILES if (partial / name).exists()}
        for name in digests:
            (partial / name).chmod(0o444)
        partial.chmod(0o755)
        manifest = {
            "name": recipe.name,
            "key": recipe.key,
            "suite": recipe.suite,
            "baked": datetime.now(UTC).isoformat(timespec="seconds"),
            "digests": digests,
        }
        write_public(partial / "manifest.json", json.dumps(manifest, indent=1).encode())
        publish(partial, target)

    def stored(self) -> list[Image]:
        """Return every image in the cache, including those that no recipe names."""
        return [
            Image(name, key, path, digests, baked)
            for path, manifest in entries(self._folder, IMAGE)
            for name, key, digests, baked in _identity(manifest)
        ]

    def remove(self, image: Image) -> None:
        """Delete an image.

        Raises:
            MachineError, UsageError: the cache folder is not ours.

        """
        caches.require(self._folder)
        remove_tree(image.folder)

    def prune(self) -> list[Path]:
        """Delete images and archives without a recipe, and leftovers; return the deleted paths.

        Leftovers are partial files of killed processes. Saved memory stays, see
        `testbed.drivers.snapshots.machine_memory`; so do checkpoints, proofs and files that are not ours.

        Raises:
            MachineError, UsageError: the cache folder is not ours.

        """
        caches.require(self._folder)
        left = clear_leftovers(self._folder)
        recipes = self.recipes().values()
        wanted = {f"{recipe.name}-{recipe.key}" for recipe in recipes}
        wanted |= {f"base-{recipe.name}-{recipe.base_key}.tar" for recipe in recipes}
        bases = [path for path in sorted(self._folder.glob("base-*.tar")) if BASE.fullmatch(path.name)]
        images = [image.folder for image in self.stored()]
        doomed = [path for path in (*bases, *images) if path.name not in wanted]
        remove_tree(*doomed)
        return [*left, *doomed]


def _identity(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, str], str]]:
    """Yield name, key, digests and time of a manifest; nothing if it lacks one of them."""
    match manifest:
        case {"name": str(name), "key": str(key), "digests": dict(digests), "baked": str(baked)}:
            if all(isinstance(word, str) for word in (*digests, *digests.values())):
                yield name, key, digests, baked
