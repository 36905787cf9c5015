"""Volumes that begin with an image: what a topology file may say, and what stays as it was (STO-03)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.errors import TopologyError
from testbed.model.resolve import resolve
from testbed.model.topology import Image, Topology
from testbed.plan.libvirt_xml.guest import is_usual
from testbed.topology_file.loader import load

TEXT = (Path(__file__).parents[3] / "topologies/one-node.yaml").read_text()
SHORT = "db: {volumes: {data: 64 MiB}}"


def lab(volume: str) -> Topology:
    """Return a lab with a guest that has one volume."""
    assert SHORT in TEXT
    return resolve(load(TEXT.replace(SHORT, f"db: {{volumes: {{data: {volume}}}}}"), "test").spec)


def guest_of(topology: Topology) -> Any:
    return next(guest for guest in topology.guests if guest.label == "red/db")


def test_a_size_alone_is_a_volume_without_an_image() -> None:
    assert lab("{size: 64 MiB}") == lab("64 MiB")
    assert lab("{size: 64 MiB}").digest == lab("64 MiB").digest
    assert guest_of(lab("64 MiB")).volumes[0].image is None


@pytest.mark.parametrize(
    ("written", "image"),
    [
        ("image: disk.qcow2", Image("disk.qcow2", "qcow2")),
        ("image: folder/disk.raw", Image("folder/disk.raw", "raw")),
        ("image: disk, format: raw", Image("disk", "raw")),
        ("image: disk.qcow2, format: raw", Image("disk.qcow2", "raw")),
    ],
)
def test_the_format_of_an_image_is_declared(written: str, image: Image) -> None:
    found = lab(f"{{size: 64 MiB, {written}}}")
    assert guest_of(found).volumes[0].image == image
    assert found.digest != lab("64 MiB").digest
    assert not is_usual(guest_of(found))
    assert is_usual(guest_of(lab("64 MiB")))


@pytest.mark.parametrize(
    ("volume", "fact"),
    [
        ("{size: 64 MiB, image: disk}", "the name 'disk' does not declare a format"),
        ("{size: 64 MiB, image: disk.img}", "the name 'disk.img' does not declare a format"),
        ("{size: 64 MiB, image: disk.vmdk}", "the name 'disk.vmdk' does not declare a format"),
        ("{size: 64 MiB, format: raw}", "it has the format of an image, and no image"),
        ("{size: 1 GiB, image: disk.raw}", "a volume of 1 GiB cannot begin with an image"),
        ("{size: 64 MiB, image: disk, format: vmdk}", "'vmdk'"),
        ('{size: 64 MiB, image: ""}', "is not the name of a file"),
        ('{size: 64 MiB, image: "a\\nb.raw"}', "is not the name of a file"),
        ("{size: 64 MiB, image: 7}", "7 is not the name of a file"),
        ("{size: 64}", "is not a size"),
        ("{image: disk.raw}", "the key 'size' is missing"),
        ("{size: 64 MiB, backing: disk.raw}", "the key 'backing' is not known here"),
        ("64", "is not a size"),
        ("1 KiB", "1 KiB is not possible here"),
    ],
)
def test_a_mistake_is_named(volume: str, fact: str) -> None:
    with pytest.raises(TopologyError) as caught:
        lab(volume)
    assert any(fact in mistake.fact for mistake in caught.value.mistakes), caught.value.mistakes
