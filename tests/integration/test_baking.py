"""Baking on a disk that fills up: a clear error, and nothing half-done left behind."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.data_files import playbooks
from testbed.drivers.host import ownership
from testbed.drivers.images.cache import ImageCache
from testbed.errors import ImageError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "cache"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=755", "tmpfs", str(folder)], check=True)
    ownership.claim(folder, ownership.CACHE, 0o755)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_while_baking(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x" * (64 << 20))
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        archive.add(tmp_path / "file", "usr/file")
    cache = ImageCache(small, playbooks())
    bases = [small / f"base-{recipe.name}-{recipe.base_key}.tar" for recipe in cache.recipes().values()]
    for base in bases:
        base.symlink_to(tmp_path / "root.tar")
    monkeypatch.setattr(ImageCache, "_check_space", lambda *_: None)
    with pytest.raises(ImageError, match="the disk filled up while the image") as caught:
        cache.ensure(lambda _: None)
    assert " MiB left" in caught.value.fact
    assert "TESTBED_CACHE_DIR" in caught.value.remedy
    left = {path.name for path in small.iterdir() if path.suffix != ".log" and path.name != ownership.MARK}
    assert left == {base.name for base in bases}
    assert cache.stored() == []
