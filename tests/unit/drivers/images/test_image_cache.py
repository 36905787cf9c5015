"""The image cache: stored images are verified, named, and pruned."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from testbed.cli.output.display import Board
from testbed.data_files import playbooks
from testbed.drivers.host.content_store import file_digest, publish
from testbed.drivers.images import build
from testbed.drivers.images.cache import ImageCache, Recipe
from testbed.engine.place import Step
from testbed.errors import ImageError


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    found = ImageCache(tmp_path, playbooks())
    recipe = found.recipes()["guest"]
    folder = tmp_path / f"guest-{recipe.key}"
    folder.mkdir()
    (folder / "disk.qcow2").write_bytes(b"a disk")
    manifest = {
        "name": "guest",
        "key": recipe.key,
        "baked": "now",
        "digests": {"disk.qcow2": file_digest(folder / "disk.qcow2")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return found


def test_a_baked_image_is_found_by_its_recipe_and_verified(cache: ImageCache) -> None:
    image = cache.find(cache.recipes()["guest"])
    assert image is not None
    image.verify()
    assert cache.find(cache.recipes()["node"]) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"name": "guest", "key": "KEY", "baked": "now", "digests": {"a": 1}}']
)
def test_an_image_without_a_valid_manifest_is_an_error_with_its_remedy(text: str, cache: ImageCache) -> None:
    recipe = cache.recipes()["guest"]
    (image,) = cache.stored()
    (image.folder / "manifest.json").write_text(text.replace("KEY", recipe.key))
    with pytest.raises(ImageError, match="the image guest is damaged") as caught:
        cache.find(recipe)
    assert str(image.folder / "manifest.json") in caught.value.fact
    assert f"delete the folder {image.folder} and" in caught.value.remedy
    assert cache.stored() == []
    (image.folder / "manifest.json").unlink()
    with pytest.raises(ImageError, match="damaged"):
        cache.find(recipe)


@pytest.mark.parametrize("change", ["other", None])
def test_a_corrupted_or_missing_file_is_told_with_its_remedy(cache: ImageCache, change: str | None) -> None:
    (image,) = cache.stored()
    disk = image.file("disk.qcow2")
    if change is None:
        disk.unlink()
    else:
        disk.write_text(change)
    with pytest.raises(ImageError, match="not what was baked") as caught:
        image.verify()
    assert str(disk) in caught.value.fact
    assert "testbed image rm guest" in caught.value.remedy


def test_a_full_disk_is_told_before_anything_is_fetched(
    cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    with pytest.raises(ImageError, match="cannot bake 2 images") as caught:
        cache.ensure(lambda _: None)
    assert "1 MiB free" in caught.value.fact
    assert len(cache.stored()) == 1


def test_a_display_sees_each_image_begin_and_end(
    cache: ImageCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def base(_: ImageCache, recipe: Recipe, *__: object) -> Path:
        if recipe.name == "node":
            raise ImageError("no network", fact="-", remedy="-")
        return tmp_path

    told: list[str] = []
    monkeypatch.setattr(ImageCache, "_base", base)
    monkeypatch.setattr(ImageCache, "_check_space", lambda *_: None)
    monkeypatch.setattr(ImageCache, "_finish", lambda *_: None)
    monkeypatch.setattr("testbed.drivers.host.process.run", lambda *_, **__: "")
    with pytest.raises(ImageError, match="no network"):
        cache.ensure(told.append)
    board = Board()
    for step in told:
        assert isinstance(step, Step)
        board.take(step)
    assert (board.planned, board.done, board.wrong, board.running) == (2, 2, 1, [])
    assert "image node: failed" in told
    assert "image controller: ready" in told


def test_the_key_follows_the_playbooks(tmp_path: Path) -> None:
    copy = tmp_path / "playbooks"
    shutil.copytree(playbooks(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = ImageCache(tmp_path, copy).recipes()
    (copy / "roles/guest/files/inittab").write_text("::respawn:/bin/true\n")
    after = ImageCache(tmp_path, copy).recipes()
    assert before["guest"].key != after["guest"].key
    assert before["node"].key == after["node"].key
    assert before["guest"].base_key == after["guest"].base_key


def test_what_python_leaves_beside_a_program_that_has_run_is_no_part_of_the_key(tmp_path: Path) -> None:
    copy = tmp_path / "playbooks"
    shutil.copytree(playbooks(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = ImageCache(tmp_path, copy).recipes()
    (copy / "roles/base/files/__pycache__").mkdir()
    (copy / "roles/base/files/__pycache__/adopt.cpython-311.pyc").write_bytes(b"compiled")
    assert ImageCache(tmp_path, copy).recipes() == before


def test_of_two_that_bake_the_same_the_faster_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "image"
    for name in ("fast", "slow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "disk").write_text(name)
        publish(tmp_path / name, target)
    assert (target / "disk").read_text() == "fast"
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "gone", target)


def test_the_key_follows_the_program_that_assembles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ImageCache(tmp_path, playbooks()).recipes()
    (tmp_path / "assemble.py").write_text("another program")
    monkeypatch.setattr(build, "__file__", str(tmp_path / "assemble.py"))
    after = ImageCache(tmp_path, playbooks()).recipes()
    assert all(before[name].key != after[name].key for name in before)
    assert all(before[name].base_key == after[name].base_key for name in before)


def _kernel(payload: bytes, *, sectors: int, offset: int) -> bytes:
    """Return a self-extracting kernel with a valid header (Linux/x86 boot protocol, 1.1)."""
    head = bytearray((sectors + 1) * 512)
    head[0x1F1], head[0x202:0x206] = sectors, b"HdrS"
    head[0x248:0x250] = struct.pack("<II", offset, len(payload))
    return bytes(head) + b"c" * offset + payload + b"what follows"


@pytest.mark.parametrize(("sectors", "offset"), [(4, 0), (39, 680)])
def test_what_is_packed_in_a_kernel_is_found_by_its_header(sectors: int, offset: int) -> None:
    packed = bytes.fromhex("28b52ffd") + b"packed"
    assert build.packed_kernel(_kernel(packed + b"size", sectors=sectors, offset=offset)) == packed


@pytest.mark.parametrize(
    ("image", "fact"),
    [
        (b"\x7fELF".ljust(1024, b"\0"), "no header"),
        (_kernel(b"\xfd7zXZ\0size", sectors=4, offset=0), "begins with fd377a58"),
    ],
)
def test_a_kernel_that_cannot_be_unpacked_says_why(image: bytes, fact: str) -> None:
    with pytest.raises(ImageError, match="cannot be unpacked") as caught:
        build.packed_kernel(image)
    assert fact in caught.value.fact
