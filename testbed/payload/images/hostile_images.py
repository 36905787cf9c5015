"""Makes a corpus of hostile images, and a few good ones, from a seed (STO-03).

Each image attacks the import of a disk: it names other files or hosts, claims sizes that it does not have, is
cut, contradicts itself, has another format than its name, or is no file at all. ``python -m
testbed.payload.images.hostile_images FOLDER [SEED]`` writes them. Images name files and a port of the machine
that watches them.
"""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from testbed.payload.images.forged_qcow2 import (
    CLUSTER,
    COPIED,
    DISK,
    FIRST,
    L1,
    L2,
    MAGIC,
    PACKED,
    Disk,
    Layout,
)

MOST = 2 << 20  # octets of the volume that all are made for
NEIGHBOUR = "neighbour"  # a file beside the images, which some name
_BACKING_FORMAT, _DATA_FILE, _NAMES, _BITMAPS, _KEYS = (
    0xE2792ACA, 0x44415441, 0x6803F857, 0x23852875, 0x0537BE77,
)  # fmt: skip
_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED = (1 << bit for bit in range(5))
# Formats that a program would find, which guesses that of a raw disk.
_GUESSED = {"vmdk-descriptor", "vdi", "vhdx", "luks", "parallels", "qed"}
_REGULAR = (b"packed" * CLUSTER)[:CLUSTER]  # content that becomes smaller


@dataclass(frozen=True)
class Image:
    """One image.

    Args:
        name: of its file.
        octets: its content; None if the file is no regular one, or is made in another way.
        form: how the topology declares it: ``raw`` or ``qcow2``.
        disk: the octets of the volume at its beginning, if the image must be imported; None if refused.
    """

    name: str
    octets: bytes | None
    form: str = "qcow2"
    disk: bytes | None = None


def corpus(seed: int, named: str, port: int) -> list[Image]:
    """Return all images that are regular files, good ones first.

    Args:
        seed: of their content.
        named: an absolute path that images name.
        port: a TCP port of 127.0.0.1 that images name.
    """
    rng = random.Random(seed)
    disk = {number: rng.randbytes(CLUSTER) for number in (0, 3, 200)}
    packed = dict.fromkeys(disk, _REGULAR)
    content = _disk(disk)
    found = [
        Image("good-raw", content, "raw", content),
        Image("good-v3", Layout(disk).octets(), disk=content),
        Image("good-v2", Layout(disk, version=2).octets(), disk=content),
        Image("good-names", Layout(disk, extensions=((_NAMES, bytes(48)),)).octets(), disk=content),
        Image("good-packed", Layout(packed, packed=True).octets(), disk=_disk(packed)),
    ]  # fmt: skip
    for name, layout in (*_elsewhere(disk, named, port), *_headers(disk), *_tables(disk)):
        found.append(Image(name, layout.octets()))
    good = Layout(disk).octets()
    places = (0, 3, 4, 71, 72, 103, 104, 111, 4095, 4096, 8191, 12288, 16384, 16392, 20479, 20480, 24576)
    found += [Image(f"cut-at-{place}", good[:place]) for place in places]
    for name, text in _others(named).items():
        padded = text.ljust(-(-max(len(text), 1) // 512) * 512, b"\0")
        found.append(Image(f"{name}-as-qcow2", text))
        if name in _GUESSED:
            found.append(Image(f"{name}-as-raw", padded, "raw", padded))
    chain = Layout(disk, backing=named.encode()).octets()
    found += [
        Image("chain-as-raw", chain, "raw", chain),
        Image("qcow2-as-raw.qcow2", good, "raw", good),
        Image("raw-as-qcow2.raw", content),
        Image("half-a-sector", b"x" * 100, "raw"),
        Image("larger-than-the-volume", bytes(MOST + 512), "raw"),
        Image("empty", b"", "raw"),
        Image("other-format", good, "vmdk"),
    ]
    return found


def _disk(clusters: Disk) -> bytes:
    """Return the octets of a disk."""
    whole = bytearray(DISK)
    for number, content in clusters.items():
        whole[number * CLUSTER : (number + 1) * CLUSTER] = content
    return bytes(whole)


def _elsewhere(disk: Disk, named: str, port: int) -> Iterator[tuple[str, Layout]]:
    """Yield images that name other files or hosts."""
    file = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{named}"}}}}'
    names = {
        "absolute": named, "relative": NEIGHBOUR, "dots": f"../../../..{named}", "file": f"file:{named}",
        "json": file, "json-nbd": f'json:{{"driver":"nbd","host":"127.0.0.1","port":"{port}"}}',
        "nbd": f"nbd:127.0.0.1:{port}", "nbd-url": f"nbd://127.0.0.1:{port}/x",
        "nbd-unix": "nbd+unix:///?socket=/run/libvirt/libvirt-sock", "http": f"http://127.0.0.1:{port}/x",
        "https": f"https://127.0.0.1:{port}/x", "ftp": f"ftp://127.0.0.1:{port}/x",
        "ssh": f"ssh://root@127.0.0.1:{port}/x", "fd": "/dev/fd/0", "proc-fd": "/proc/self/fd/0",
        "fdset": "/dev/fdset/1", "device": "host_device:/dev/vda", "disk": "/dev/vda", "fat": "fat:/etc",
        "itself": "chain-to-itself", "long": "/" + "x" * 1022, "blkdebug": f"blkdebug::{named}",
    }  # fmt: skip
    for name, target in names.items():
        yield f"chain-to-{name}", Layout(disk, backing=target.encode())
    of_raw, of_itself = ((_BACKING_FORMAT, b"raw"),), ((_BACKING_FORMAT, b"qcow2"),)
    yield "chain-with-format", Layout(disk, backing=named.encode(), extensions=of_raw)
    yield "chain-with-another-format", Layout(disk, backing=named.encode(), extensions=of_itself)
    yield "chain-of-version-2", Layout(disk, version=2, backing=named.encode())
    yield "chain-behind-the-end", Layout(disk, fields={"backing": 1 << 40, "backing_length": 9})
    yield "chain-without-length", Layout(disk, fields={"backing": 104})
    yield "chain-without-name", Layout(disk, fields={"backing_length": 1023})
    for name in ("absolute", "relative", "json", "nbd", "http", "fd"):
        outside = ((_DATA_FILE, names[name].encode()),)
        yield f"data-in-{name}", Layout(disk, fields={"incompatible": _EXTERNAL}, extensions=outside)
    outside = ((_DATA_FILE, named.encode()),)
    yield "data-without-feature", Layout(disk, extensions=outside)
    raw = {"incompatible": _EXTERNAL, "autoclear": 2}
    yield "data-as-raw", Layout(disk, fields=raw, extensions=outside)
    yield "data-without-name", Layout(disk, fields={"incompatible": _EXTERNAL})


def _headers(disk: Disk) -> Iterator[tuple[str, Layout]]:
    """Yield images whose header claims or needs too much."""
    values: dict[str, dict[str, int]] = {
        "aes": {"encryption": 1}, "luks-inside": {"encryption": 2}, "unknown-encryption": {"encryption": 9},
        "one-snapshot": {"snapshots": 1, "snapshot_table": L1 * CLUSTER},
        "snapshot-bomb": {"snapshots": 2**32 - 1, "snapshot_table": L1 * CLUSTER},
        "many-snapshots": {"snapshots": 65536, "snapshot_table": CLUSTER},
        "snapshot-table": {"snapshot_table": 8},
        "64-tib": {"size": 64 << 40}, "2-to-63": {"size": 1 << 63}, "all-ones": {"size": 2**64 - 512},
        "no-size": {"size": 0}, "one-sector-more": {"size": MOST + 512}, "odd-size": {"size": 1000},
        "bits-0": {"bits": 0}, "bits-8": {"bits": 8}, "bits-22": {"bits": 22}, "bits-63": {"bits": 63},
        "bits-all": {"bits": 2**32 - 1}, "order-7": {"order": 7}, "order-all": {"order": 2**32 - 1},
        "short-header": {"length": 72}, "long-header": {"length": 2**32 - 8}, "odd-header": {"length": 107},
        "dirty": {"incompatible": _DIRTY}, "corrupt": {"incompatible": _CORRUPT},
        "extended-l2": {"incompatible": _EXTENDED}, "unknown-feature": {"incompatible": 1 << 63},
        "all-features": {"incompatible": 2**64 - 1}, "bitmaps": {"autoclear": 1},
        "unknown-compatible": {"compatible": 1 << 40},
    }  # fmt: skip
    for name, fields in values.items():
        yield name, Layout(disk, fields=fields)
    for version in (0, 1, 4, 2**32 - 1):
        yield f"version-{version}", Layout(disk, version=version)
    yield "64-tib-of-version-2", Layout(disk, version=2, fields={"size": 64 << 40, "l1_size": 1 << 25})
    yield "zstd", Layout(disk, fields={"incompatible": _COMPRESSION}, compression=1)
    yield "compression-without-feature", Layout(disk, compression=1)
    names = ((_NAMES, bytes(48)),)
    yield "endless-extension", Layout(disk, extensions=names, lengths={0: 2**32 - 1})
    yield "extension-over-the-end", Layout(disk, extensions=names, lengths={0: CLUSTER - 112})
    yield "many-extensions", Layout(disk, extensions=((_NAMES, b""),) * 60)
    yield "unknown-extension", Layout(disk, extensions=((0x12345678, b"x"),))
    yield "bitmaps-extension", Layout(disk, extensions=((_BITMAPS, bytes(24)),))
    yield "key-extension", Layout(disk, extensions=((_KEYS, struct.pack(">QQ", 1 << 40, 1 << 40)),))


def _tables(disk: Disk) -> Iterator[tuple[str, Layout]]:
    """Yield images whose tables are too large, outside or overlap."""
    values: dict[str, dict[str, int]] = {
        "l1-bomb": {"l1_size": 1 << 22}, "l1-all": {"l1_size": 2**32 - 1}, "l1-none": {"l1_size": 0},
        "l1-behind-the-end": {"l1": 1 << 40}, "l1-inside-a-cluster": {"l1": L1 * CLUSTER + 8},
        "l1-over-the-header": {"l1": 0}, "counts-bomb": {"table_clusters": 1 << 20},
        "counts-all": {"table_clusters": 2**32 - 1}, "counts-none": {"table_clusters": 0},
        "counts-behind-the-end": {"table": 1 << 50}, "counts-over-l1": {"table": L1 * CLUSTER},
    }  # fmt: skip
    for name, fields in values.items():
        yield name, Layout(disk, fields=fields)
    yield "l1-to-itself", Layout(disk, first=(COPIED | L1 * CLUSTER,))
    yield "l1-behind", Layout(disk, first=(COPIED | 1 << 45,))
    yield "l1-unknown-bits", Layout(disk, first=(COPIED | L2 * CLUSTER | 6,))
    yield "l1-twice", Layout(disk, first=(COPIED | L2 * CLUSTER,) * 2, fields={"l1_size": 2})
    data = COPIED | FIRST * CLUSTER
    entries = {
        "clusters-overlap": data, "data-over-l1": COPIED | L1 * CLUSTER,
        "data-over-l2": COPIED | L2 * CLUSTER,
        "data-behind-the-end": COPIED | 1 << 44, "data-inside-a-cluster": data + 512,
        "data-unknown-bits": data | 8,
        "packed-behind-the-end": PACKED | 1 << 40, "packed-over-l2": PACKED | L2 * CLUSTER,
        "packed-over-data": PACKED | FIRST * CLUSTER,
    }  # fmt: skip
    for name, entry in entries.items():
        yield name, Layout(disk, second={9: entry})
    yield "all-clusters-one", Layout(disk, second=dict.fromkeys(range(256), data))


def _others(named: str) -> dict[str, bytes]:
    """Return the beginnings of images of other formats, some of which name a file."""
    extent = f'RW 2048 FLAT "{named}" 0\nRW 2048 FLAT "{NEIGHBOUR}" 0\n'
    descriptor = (
        f'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n\n'
        f"# Extent description\n{extent}\n# The Disk Data Base\n#DDB\n"
    )
    vdi = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + struct.pack(
        "<II", 0xBEDA107F, 0x10001
    )
    name = named.encode()
    return {
        "vmdk-descriptor": descriptor.encode(),
        "vmdk-sparse": b"KDMV" + struct.pack("<IIQQQQ", 1, 3, 2048, 128, 1, 20),
        "vdi": vdi.ljust(1024, b"\0"),
        "vhdx": b"vhdxfile".ljust(1024, b"\0"),
        "vhd": b"conectix".ljust(512, b"\0"),
        "luks": b"LUKS\xba\xbe" + struct.pack(">H", 1) + b"aes".ljust(1024, b"\0"),
        "parallels": b"WithoutFreeSpace" + struct.pack("<IIIIIQ", 2, 16, 64, 63, 0, 2048),
        "parallels-extended": b"WithouFreSpacExt" + struct.pack("<IIIIIQ", 2, 16, 64, 2**32 - 1, 0, 2048),
        "qcow1": MAGIC + struct.pack(">IQIIQBB2xIQ", 1, 48, len(name), 0, DISK, 12, 9, 0, 48) + name,
        "qed": b"QED\0" + struct.pack("<IIIQQQQQII", 4096, 4, 1, 1, 0, 0, 4096, DISK, 64, len(name)) + name,
        "bochs": b"Bochs Virtual HD Image\0".ljust(512, b"\0"),
        "cloop": b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0".ljust(512, b"\0"),
        "dmg": bytes(512) + b"koly".ljust(512, b"\0"),
        "gzip": b"\x1f\x8b\x08".ljust(512, b"\0"),
        "bitlocker": b"\xebX\x90-FVE-FS-".ljust(512, b"\0"),
    }  # fmt: skip


def write(folder: str, seed: int, named: str, port: int) -> list[Image]:
    """Write all images into a folder, and what is no regular file; return them, good ones first.

    Devices need root. A file that cannot be made is left out.
    """
    made = corpus(seed, named, port)
    for image in made:
        with open(f"{folder}/{image.name}", "wb") as file:
            file.write(image.octets or b"")
    with open(f"{folder}/sparse-bomb", "wb") as file:
        file.truncate(1 << 40)
    with open(f"{folder}/sparse-qcow2", "wb") as file:
        file.write(Layout().octets())
        file.truncate(1 << 40)
    os.symlink(named, f"{folder}/link-absolute")
    os.symlink(NEIGHBOUR, f"{folder}/link-relative")
    os.symlink("/proc/self/fd/0", f"{folder}/link-to-a-descriptor")
    os.mkfifo(f"{folder}/fifo")
    os.mkdir(f"{folder}/folder")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
    odd = ["link-absolute", "link-relative", "link-to-a-descriptor", "fifo", "folder", "socket", "missing"]
    if not os.geteuid():
        for name, kind, device in (("zeros", stat.S_IFCHR, (1, 5)), ("block-device", stat.S_IFBLK, (254, 0))):
            os.mknod(f"{folder}/{name}", kind | 0o644, os.makedev(*device))
            odd.append(name)
    made += [Image(name, None, "raw") for name in ("sparse-bomb", *odd)]
    made += [Image("sparse-qcow2", None)]
    return made


if __name__ == "__main__":
    target, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    os.makedirs(target)
    for written in write(target, seed, f"{os.path.abspath(target)}/named", 10809):
        print(written.name, written.form, "refused" if written.disk is None else "imported")
