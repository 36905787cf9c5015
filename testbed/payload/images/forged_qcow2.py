"""Makes qcow2 images of which any field can be wrong (QEMU, "QCow2 file format")."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

MAGIC = b"QFI\xfb"
BITS = 12
CLUSTER = 1 << BITS
DISK = 1 << 20  # octets of the disk in an image
COPIED, PACKED = 1 << 63, 1 << 62  # of an entry of a table
TABLE, BLOCK, L1, L2, FIRST = range(1, 6)  # clusters of an image, in its order
Disk = dict[int, bytes]  # number of a cluster of the disk, and its content


@dataclass
class Layout:
    """A qcow2 image; each field that is set makes it differ from a good one."""

    disk: Disk = field(default_factory=dict)
    version: int = 3
    fields: dict[str, int] = field(default_factory=dict)
    extensions: tuple[tuple[int, bytes], ...] = ()
    lengths: dict[int, int] = field(default_factory=dict)  # claimed length of a header extension
    backing: bytes = b""
    first: tuple[int, ...] | None = None
    second: dict[int, int] = field(default_factory=dict)
    packed: bool = False
    more: bytes = b""  # behind the last cluster
    compression: int = 0

    def octets(self) -> bytes:
        """Return the image."""
        second, data = [0] * (CLUSTER // 8), b""
        at = FIRST * CLUSTER
        for number, content in self.disk.items():
            if self.packed:
                deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
                text = deflate.compress(content) + deflate.flush()
                start = at + len(data)
                sectors = (start + len(text) - 1) // 512 - start // 512
                second[number] = PACKED | start | sectors << (62 - (BITS - 8))
                data += text
            else:
                second[number] = COPIED | (at + len(data))
                data += content.ljust(CLUSTER, b"\0")
        for number, entry in self.second.items():
            second[number] = entry
        data += b"\0" * (-len(data) % CLUSTER)
        clusters = FIRST + len(data) // CLUSTER
        first = self.first if self.first is not None else (COPIED | L2 * CLUSTER,)
        counts = b"\0\1" * clusters
        parts = (
            self._header(), struct.pack(">Q", BLOCK * CLUSTER), counts,
            struct.pack(f">{len(first)}Q", *first),
            struct.pack(f">{len(second)}Q", *second),
        )  # fmt: skip
        return b"".join(part.ljust(CLUSTER, b"\0") for part in parts) + data + self.more

    def _header(self) -> bytes:
        length = 112 if self.compression else 104 if self.version > 2 else 72
        more = b""
        for number, (kind, text) in enumerate(self.extensions):
            more += struct.pack(">II", kind, self.lengths.get(number, len(text)))
            more += text.ljust(-(-len(text) // 8) * 8, b"\0")
        more += b"\0" * 8
        value = {
            "backing": length + len(more) if self.backing else 0, "backing_length": len(self.backing),
            "bits": BITS, "size": DISK, "encryption": 0, "l1_size": 1, "l1": L1 * CLUSTER,
            "table": TABLE * CLUSTER, "table_clusters": 1, "snapshots": 0, "snapshot_table": 0,
            "incompatible": 0, "compatible": 0, "autoclear": 0, "order": 4, "length": length,
        } | self.fields  # fmt: skip
        names = (
            "backing", "backing_length", "bits", "size", "encryption", "l1_size", "l1", "table",
            "table_clusters", "snapshots", "snapshot_table",
        )  # fmt: skip
        text = struct.pack(">4sIQIIQIIQQIIQ", MAGIC, self.version, *(value[name] for name in names))
        if self.version > 2:
            later = ("incompatible", "compatible", "autoclear", "order", "length")
            text += struct.pack(">QQQII", *(value[name] for name in later))
        return (
            text + (struct.pack(">B7x", self.compression) if self.compression else b"") + more + self.backing
        )
