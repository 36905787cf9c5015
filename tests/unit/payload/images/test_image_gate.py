"""The gate of imported images: headers, hostile images, conversion and the program of the attack (STO-03)."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.payload.images import hostile_images, image_gate, taken_over
from testbed.payload.images.forged_qcow2 import CLUSTER, DISK, Layout
from testbed.payload.images.hostile_images import MOST, Image
from testbed.payload.images.image_header import QCOW2, RAW, RefusedError, opened, virtual_size

SEED, PORT = 7, 10809
NAMED = "/run/named"
CORPUS = hostile_images.corpus(SEED, NAMED, PORT)
GOOD = Layout({0: b"first" * 9, 200: b"last" * 9})
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")


def size_of(path: Path, form: str, most: int = MOST) -> int:
    """Return the size of the disk in an image file."""
    file = opened(str(path))
    try:
        return virtual_size(file, form, most)
    finally:
        os.close(file)


def refusal(path: Path, octets: bytes, form: str = QCOW2) -> str:
    """Return why an image is refused, or nothing."""
    path.write_bytes(octets)
    try:
        size_of(path, form)
    except RefusedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("image", [item for item in CORPUS if item.disk is None], ids=lambda item: item.name)
def test_hostile_images_are_refused(image: Image, tmp_path: Path) -> None:
    reason = refusal(tmp_path / "image", image.octets or b"", image.form)
    assert reason
    assert NAMED not in reason


@pytest.mark.parametrize(
    "image", [item for item in CORPUS if item.disk is not None], ids=lambda item: item.name
)
@needs_qemu
def test_others_are_imported_octet_by_octet(image: Image, tmp_path: Path) -> None:
    path, target = tmp_path / "image", tmp_path / "volume"
    path.write_bytes(image.octets or b"")
    target.touch()
    os.truncate(target, MOST)
    answer = image_gate.one(str(path), image.form, str(target), MOST, 60)
    assert answer["refused"] == ""
    assert target.read_bytes() == (image.disk or b"").ljust(MOST, b"\0")
    assert isinstance(answer["memory"], int)
    assert answer["memory"] > 0


def test_the_corpus_is_large_and_the_same_for_a_seed() -> None:
    names = [image.name for image in CORPUS]
    assert len(set(names)) == len(names)
    assert sum(image.disk is None for image in CORPUS) >= 60
    assert hostile_images.corpus(SEED, NAMED, PORT) == CORPUS
    assert hostile_images.corpus(SEED + 1, NAMED, PORT) != CORPUS


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    special = [
        image for image in hostile_images.write(str(tmp_path), SEED, NAMED, PORT) if image.octets is None
    ]
    assert {"fifo", "socket", "folder", "link-absolute", "missing", "sparse-bomb"} <= {
        i.name for i in special
    }
    for image in special:
        with pytest.raises(RefusedError):
            size_of(tmp_path / image.name, image.form)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(backing=b"/etc/shadow"), "it has a backing file"),
        (Layout(fields={"incompatible": 4}), "it needs the features 0x4"),
        (Layout(fields={"snapshots": 1}), "it has snapshots"),
        (Layout(fields={"encryption": 2}), "it is encrypted"),
        (
            Layout(fields={"size": MOST + 512}),
            f"the disk in it has {MOST + 512} octets, and the volume {MOST}",
        ),
        (Layout(fields={"l1_size": 1 << 20}), "its first table has 1048576 entries for 1"),
        (Layout(fields={"l1": 0}), "parts of it overlap"),
        (Layout(version=4), "version 4 of qcow2 is not known"),
        (Layout(extensions=((0x44415441, b"x"),)), "it has the header extension 0x44415441"),
        (Layout(second={0: 1 << 40}), "a part of it lies behind its end"),
    ],
)  # fmt: skip
def test_a_refusal_has_its_reason(layout: Layout, reason: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / "image", layout.octets()) == reason


def test_an_image_of_another_format_is_never_recognised(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(GOOD.octets())
    assert size_of(path, QCOW2) == DISK
    assert size_of(path, RAW) == path.stat().st_size
    with pytest.raises(RefusedError, match="neither raw nor qcow2"):
        size_of(path, "vmdk")


def test_qemu_is_given_the_format_and_no_backing_file() -> None:
    words = image_gate.words("/import/in/a", QCOW2, "/import/out/a")
    image = json.loads(words[-2].removeprefix("json:"))
    assert image == {
        "driver": "qcow2", "backing": None,
        "file": {"driver": "file", "filename": "/import/in/a", "locking": "off"},
    }  # fmt: skip
    assert words[:5] == ["/usr/bin/qemu-img", "convert", "-q", "-n", "-O"]
    assert "backing" not in image_gate.source("/import/in/a", RAW)


@needs_qemu
def test_an_import_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(GOOD.octets())
    monkeypatch.setattr(image_gate, "imported", lambda *_: time.sleep(60))
    answer = image_gate.one(str(path), QCOW2, str(tmp_path / "volume"), MOST, 0.2)
    assert answer["refused"] == "its import did not end within 0 s"


def test_an_error_of_the_gate_is_a_refusal_without_content(tmp_path: Path) -> None:
    answer = image_gate.one(str(tmp_path / "none"), QCOW2, str(tmp_path / "volume"), MOST, 20)
    assert answer["refused"] == "the file cannot be opened: No such file or directory"
    answer = image_gate.one("\0", QCOW2, str(tmp_path / "volume"), MOST, 20)
    assert answer["refused"] == "the gate failed: ValueError"


_VALUES = st.sampled_from([b"\xff" * 8, b"\0" * 8, struct.pack(">Q", 1 << 62)])
_BASES = [
    GOOD.octets(),
    Layout({1: b"x" * CLUSTER}, version=2).octets(),
    Layout({1: b"y" * CLUSTER}, packed=True).octets(),
]


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from(_BASES),
    changes=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 127), st.integers(CLUSTER, 6 * CLUSTER)),
            st.one_of(st.binary(min_size=1, max_size=8), _VALUES),
        ),
        max_size=6,
    ),
    length=st.one_of(st.none(), st.integers(0, 8 * CLUSTER)),
)  # fmt: skip
def test_a_changed_image_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    base: bytes,
    changes: list[tuple[int, bytes]],
    length: int | None,
) -> None:
    octets = bytearray(base[:length])
    for place, text in changes:
        octets[place : place + len(text)] = text
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(octets)
    with suppress(RefusedError):
        assert 0 < size_of(path, QCOW2) <= MOST


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3"]))
def test_random_octets_are_refused(
    tmp_path_factory: pytest.TempPathFactory, octets: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    assert refusal(path, start + octets)


def test_every_attempt_of_a_parser_that_was_taken_over_has_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "out/a").write_bytes(b"")
    (tmp_path / "request.json").write_text("{}")
    monkeypatch.setattr(taken_over, "FOLDER", str(tmp_path))
    monkeypatch.setattr(os, "setuid", lambda _: os.kill(1 << 30, 0))
    monkeypatch.setattr(taken_over, "_called", lambda *_: lambda: None)
    monkeypatch.setattr(taken_over, "_writes", lambda _: lambda: None)
    monkeypatch.setattr(taken_over.resource, "setrlimit", lambda *_: None)
    found = taken_over.attempts({"most": 4096, "port": 1, "paths": ["/etc/passwd", "/none"]})
    assert found["control: its request is read"] == ""
    assert found["open /etc/passwd"] == ""
    assert found["open /none"].startswith("FileNotFoundError")
    assert found["become root"].startswith(("OverflowError", "ProcessLookupError"))
    assert found["connect to the node"]
    assert found["write behind the end of the volume"] == ""
    assert (tmp_path / "out/a").stat().st_size == 4097


def test_content_depends_on_the_seed_alone() -> None:
    state = random.getstate()
    hostile_images.corpus(1, NAMED, PORT)
    assert random.getstate() == state
