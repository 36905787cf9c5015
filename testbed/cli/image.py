"""The verbs about images, which need no lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from testbed import data_files as packaged
from testbed.cli.output.terminal import Json, displayed, out, say
from testbed.drivers.host.workspace import cache_root
from testbed.drivers.images import vagrant_box
from testbed.drivers.images.cache import ImageCache
from testbed.drivers.snapshots import machine_memory
from testbed.errors import UsageError

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Images: list, bake, verify, rm, prune, box."
)


def _cache() -> ImageCache:
    return ImageCache(cache_root(), packaged.playbooks())


@app.command("list")
def image_list(as_json: Json = False) -> None:
    """List the images in the cache."""
    images, saved = _cache().stored(), machine_memory.stored(cache_root())
    if as_json:
        rows = [
            {"kind": "image", "name": i.name, "key": i.key, "baked": i.baked, "folder": str(i.folder)}
            for i in images
        ]
        rows += [
            {"kind": "memory", "name": s.role, "key": s.key, "saved": s.saved, "folder": str(s.folder)}
            for s in saved
        ]
        out(json.dumps(rows))
    else:
        lines = [f"{i.name:12} {i.key}  baked {i.baked}" for i in images]
        lines += [
            f"{s.role:12} {s.key}  saved {s.saved}, {s.size // 2**20} MiB: a {s.made['hardware']}"
            for s in saved
        ]
        out("\n".join(lines) or "no images")


@app.command("key")
def image_key() -> None:
    """Print one key of all images: it changes when one of them has to be baked again."""
    out(_cache().key())


@app.command("bake")
def image_bake() -> None:
    """Bake what is missing."""
    with displayed("bake"):
        images = _cache().ensure(say)
    for image in images.values():
        out(f"{image.name:12} {image.key}  {image.digest}")


@app.command("box")
def image_box(
    folder: Annotated[Path, typer.Argument(help="where the box and its catalogue go")] = Path(".vagrant-box"),
) -> None:
    """Make a box of Vagrant for libvirt, with the tool's packages; needs a checkout."""
    playbooks = packaged.playbooks()
    cache = ImageCache(cache_root(), playbooks, "boxes.yaml")
    key = vagrant_box.key(cache.key(), playbooks.parent)
    box = vagrant_box.find(folder, key)
    if box is None:
        with displayed("bake"):
            image = cache.ensure(say)["outer"]
        box = vagrant_box.pack(image, folder, key)
        cache.remove(image)
    out(f"{box.file}  version {box.version}, {box.file.stat().st_size // 2**20} MiB")
    out(f"{box.catalogue}")


@app.command("verify")
def image_verify() -> None:
    """Compare every file of every image with its recorded digest."""
    for image in _cache().stored():
        image.verify()
        out(f"{image.name:12} {image.key}  as baked")
    for saved in machine_memory.stored(cache_root()):
        saved.verify()
        out(f"{saved.role:12} {saved.key}  as saved")


@app.command("rm")
def image_rm(name: Annotated[str, typer.Argument(help="name of an image")]) -> None:
    """Remove an image from the cache."""
    found = [image for image in _cache().stored() if image.name == name]
    if not found:
        raise UsageError(
            f"there is no image {name}",
            fact="the cache has none of that name",
            remedy="run `testbed image list`",
        )
    for image in found:
        _cache().remove(image)
    _prune_memories()


@app.command("prune")
def image_prune() -> None:
    """Remove what no present recipe needs."""
    for path in (*_cache().prune(), *_prune_memories()):
        out(f"removed {path}")


def _prune_memories() -> list[Path]:
    """Remove the saved memory of machines whose images are gone."""
    return machine_memory.prune(cache_root(), {image.digest for image in _cache().stored()})
