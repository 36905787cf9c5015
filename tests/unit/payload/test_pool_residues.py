"""The program that searches the device below a folder, on file systems in files of this machine (STO-04)."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import time
from pathlib import Path

import pytest

from testbed.drivers.places import luks_volumes
from testbed.model.topology import LUKS_HEADER
from testbed.payload.residues import pool_residues

MIB = 1 << 20
TEXT = secrets.token_bytes(32)


@pytest.fixture(autouse=True)
def _cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_DIRECT", 0)  # not every file system has it


def _made(path: Path, *options: str, size: int = 512) -> Path:
    with path.open("wb") as file:
        file.truncate(size * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, str(path)], check=True)
    return path


def _parts(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return list(pool_residues.given_out(file.fileno(), path.stat().st_size))


def _search(path: Path, texts: dict[str, bytes], enough: set[str] = frozenset(), seconds: float = 60) -> dict:  # type: ignore[type-arg,assignment]
    return pool_residues._searched(str(path), texts, {*enough}, time.monotonic() + seconds)


def test_only_groups_that_were_never_used_are_left_out(tmp_path: Path) -> None:
    """The parts are those that dumpe2fs does not mark, and hold every block of every file."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "file").write_bytes(TEXT * 2_000_000)
    image = _made(tmp_path / "image", "-d", str(folder))
    parts = _parts(image)
    told = subprocess.run(["dumpe2fs", str(image)], check=True, capture_output=True, text=True).stdout
    groups = [text for text in re.findall(r"^Group \d+:.*", told, re.MULTILINE) if "BLOCK_UNINIT" not in text]
    assert sum(stop - start for start, stop in parts) == len(groups) * 128 * MIB
    assert 0 < len(groups) < 4
    found = _search(image, {"": TEXT})
    assert found["found"][""]
    assert found["read"] == found["chosen"] == len(groups) * 128 * MIB


@pytest.mark.parametrize("options", [("-O", "^metadata_csum,^uninit_bg"), ("-O", "meta_bg,^resize_inode")])
def test_a_file_system_without_marks_is_read_whole(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = _made(tmp_path / "image", *options, size=300)
    assert _parts(image) == [(0, 300 * MIB)]


def test_what_is_no_ext4_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(MIB))
    assert _parts(tmp_path / "image") == [(0, MIB)]


@pytest.mark.parametrize(
    "place", [0, 5, pool_residues._CHUNK - 1, pool_residues._CHUNK - 31, 2 * pool_residues._CHUNK]
)
def test_a_text_is_found_wherever_it_lies(tmp_path: Path, place: int) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(3 * pool_residues._CHUNK)
        file.seek(place)
        file.write(TEXT)
    assert _search(image, {"one": TEXT, "other": TEXT[::-1] + b"x"})["found"] == {"one": [place], "other": []}


def test_a_search_ends_when_it_has_found_enough_or_its_time_is_over(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(TEXT + bytes(3 * pool_residues._CHUNK))
    assert _search(image, {"": TEXT}, {""})["read"] == pool_residues._CHUNK
    late = _search(image, {"": TEXT}, seconds=-1)
    assert late["read"] < late["chosen"]


def test_a_text_of_its_own_is_in_the_folder_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def searched(device: str, texts: dict[str, bytes], enough: set[str], end: float) -> dict[str, object]:
        seen.extend(file.read_bytes() for file in tmp_path.iterdir())
        assert (device.startswith("/dev/"), texts["a"], enough) == (True, b"abc", {"", "a"})
        assert end > time.monotonic()
        return {"own": texts[""]}

    monkeypatch.setattr(pool_residues, "_searched", searched)
    request = {"place": str(tmp_path), "texts": {"a": b"abc".hex()}, "enough": ["a"], "seconds": 5}
    assert [pool_residues.search(request)["own"]] == seen
    assert not [*tmp_path.iterdir()]


def test_a_container_is_known_by_its_header_and_its_one_slot(tmp_path: Path) -> None:
    path = tmp_path / "x.luks"
    subprocess.run(["/bin/sh", "-c", luks_volumes.make(str(path), MIB)], input=b"0" * 64, check=True)
    texts = pool_residues.container({"file": str(path)})["texts"]
    assert isinstance(texts, dict)
    assert [*texts] == [
        "the header",
        "the name",
        "the salt of slot 0",
        "the beginning of slot 0",
        "the end of slot 0",
    ]
    head = path.read_bytes()[:LUKS_HEADER]
    for text in texts.values():
        assert head.count(bytes.fromhex(text)) == 1
        assert len({*bytes.fromhex(text)}) > 8
    end = head.index(bytes.fromhex(texts["the end of slot 0"])) + pool_residues._SAMPLE
    assert not head[end : end + 512].strip(b"\0")
    subprocess.run(["/bin/sh", "-c", luks_volumes.wipe(str(path)).partition("; rm")[0]], check=True)
    with pytest.raises(ValueError, match="no LUKS container"):
        pool_residues.container({"file": str(path)})


def test_files_show_texts_and_where_their_content_begins(tmp_path: Path) -> None:
    fresh, used = tmp_path / "fresh", tmp_path / "used"
    for path in (fresh, used):
        path.write_bytes(b"head" * 1024)
        os.truncate(path, 4 * MIB)
    with used.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(TEXT)
    request = {"files": {str(fresh): MIB, str(used): MIB}, "texts": {"a": TEXT.hex()}}
    told = pool_residues.files(request)["files"]
    assert isinstance(told, dict)
    assert (told[str(fresh)]["content"], told[str(fresh)]["found"]) == (None, [])
    assert (told[str(used)]["content"], told[str(used)]["found"]) == (2 * MIB, ["a"])
    assert told[str(fresh)]["used"] < told[str(fresh)]["size"] == 4 * MIB
