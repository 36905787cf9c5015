"""The image cache: what is stored is verified, named, and pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.drivers.images import ImageCache, file_digest, publish
from testbed.errors import ImageError
from testbed.resources import playbooks


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    found = ImageCache(tmp_path, playbooks())
    recipe = found.recipes()["guest"]
    folder = tmp_path / f"guest-{recipe.key}"
    folder.mkdir()
    (folder / "disk.qcow2").write_bytes(b"a disk")
    manifest = {"name": "guest", "key": recipe.key, "baked": "now", "digests": {"disk.qcow2": file_digest(folder / "disk.qcow2")}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return found


def test_a_baked_image_is_found_by_its_recipe_and_verified(cache: ImageCache) -> None:
    image = cache.find(cache.recipes()["guest"])
    assert image is not None
    image.verify()
    assert cache.find(cache.recipes()["node"]) is None


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


def test_a_full_disk_is_told_before_anything_is_fetched(cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    with pytest.raises(ImageError, match="cannot bake 2 images") as caught:
        cache.ensure(lambda _: None)
    assert "1 MiB free" in caught.value.fact
    assert len(cache.stored()) == 1


def test_the_key_follows_the_playbooks(tmp_path: Path) -> None:
    import shutil  # noqa: PLC0415

    copy = tmp_path / "playbooks"
    shutil.copytree(playbooks(), copy)
    before = ImageCache(tmp_path, copy).recipes()
    (copy / "roles/guest/files/inittab").write_text("::respawn:/bin/true\n")
    after = ImageCache(tmp_path, copy).recipes()
    assert before["guest"].key != after["guest"].key
    assert before["node"].key == after["node"].key
    assert before["guest"].base_key == after["guest"].base_key


def test_of_two_that_bake_the_same_the_faster_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "image"
    for name in ("fast", "slow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "disk").write_text(name)
        publish(tmp_path / name, target)
    assert (target / "disk").read_text() == "fast"
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "gone", target)
