"""The verbs about images, which need no lab."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from testbed import resources as packaged
from testbed.drivers.images import ImageCache
from testbed.drivers.workspace import cache_root
from testbed.errors import UsageError
from testbed.terminal import Json, out, say

app = typer.Typer(no_args_is_help=True, help="Images: list, bake, verify, rm, prune.")


def _cache() -> ImageCache:
    return ImageCache(cache_root(), packaged.playbooks())


@app.command("list")
def image_list(as_json: Json = False) -> None:
    """List the images in the cache."""
    images = _cache().stored()
    if as_json:
        out(json.dumps([{"name": i.name, "key": i.key, "baked": i.baked, "folder": str(i.folder)} for i in images]))
    else:
        out("\n".join(f"{i.name:12} {i.key}  baked {i.baked}" for i in images) or "no images")


@app.command("bake")
def image_bake() -> None:
    """Bake what is missing."""
    for image in _cache().ensure(say).values():
        out(f"{image.name:12} {image.key}  {image.digest}")


@app.command("verify")
def image_verify() -> None:
    """Compare every file of every image with its recorded digest."""
    for image in _cache().stored():
        _cache().verify(image)
        out(f"{image.name:12} {image.key}  as baked")


@app.command("rm")
def image_rm(name: Annotated[str, typer.Argument(help="name of an image")]) -> None:
    """Remove an image from the cache."""
    found = [image for image in _cache().stored() if image.name == name]
    if not found:
        raise UsageError(f"there is no image {name}", fact="the cache has none of that name", remedy="run `testbed image list`")
    for image in found:
        _cache().remove(image)


@app.command("prune")
def image_prune() -> None:
    """Remove what no present recipe needs."""
    for path in _cache().prune():
        out(f"removed {path}")
