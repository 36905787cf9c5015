"""Reads header and tables of a foreign image, and refuses what an import needs not (STO-03).

Only octets of the image itself are read. The layout is that of QEMU's "QCow2 file format". An image is
refused if it needs another file, a key, a repair or a feature that is not known here, or if one of its tables
is larger than its volume needs. CVE-2024-32498 is an example of an image that named files of its host.
"""

from __future__ import annotations

import os
import stat
import struct

RAW, QCOW2 = "raw", "qcow2"
_SECTOR = 512
_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # of version 2
_LATER = struct.Struct(">QQQII")  # what version 3 adds
_V3_LENGTH = _HEADER.size + _LATER.size
_COMPRESSION = _V3_LENGTH  # offset of the kind of compression
_LAZY = 1  # the only compatible feature: counts of references may be late
_CLUSTER_BITS = range(9, 22)
_MOST_REFCOUNT_ORDER = 6
_MOST_TABLE = 1 << 20  # octets of a table
BESIDE = 1 << 24  # octets of an image beside those of its volume: its header and tables
_EXTENSION = struct.Struct(">II")
_NAMES = 0x6803F857  # the one header extension that is accepted: names of features
_MOST_EXTENSIONS = 8
_OFFSET = 0x00FFFFFFFFFFFE00  # of a table or cluster, in an entry
_COPIED, _COMPRESSED, _ZEROS = 1 << 63, 1 << 62, 1
_FREE, _DATA, _META, _PACKED = range(4)  # uses of a cluster of the file


class RefusedError(Exception):
    """An image is not imported; its text is the reason, and has no part of the image in it but numbers."""


def opened(path: str) -> int:
    """Return a descriptor of an image, without following a link or waiting for a writer.

    Raises:
        RefusedError: it is no regular file.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(f"the file cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise RefusedError("it is no regular file")
    return file


def virtual_size(file: int, form: str, most: int) -> int:
    """Return the size of the disk in an image, in bytes.

    Args:
        file: descriptor of the image.
        form: ``raw`` or ``qcow2``; it is never found out from the content.
        most: size of the volume in bytes.

    Raises:
        RefusedError: the image is refused.
    """
    length = os.fstat(file).st_size
    if form == RAW:
        size = length
    elif form == QCOW2:
        _require(length <= most + BESIDE, f"the file has {length} octets, more than {most + BESIDE}")
        size = _Qcow2(file, length, most).size
    else:
        raise RefusedError("its format is neither raw nor qcow2")
    _require(0 < size <= most, f"the disk in it has {size} octets, and the volume {most}")
    _require(size % _SECTOR == 0, f"the disk in it has {size} octets, which are no whole sectors")
    return size


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise RefusedError(reason)


class _Qcow2:
    """One image in the format qcow2; see `virtual_size`."""

    def __init__(self, file: int, length: int, most: int) -> None:
        self._file, self._length = file, length
        text = self._read(0, _HEADER.size, "the header")
        magic, self._version, base, base_length, bits, self.size, encryption, *rest = _HEADER.unpack(text)
        l1_size, l1_offset, table_offset, table_clusters, snapshots, snapshots_offset = rest
        _require(magic == _MAGIC, "it does not begin as qcow2 does")
        _require(self._version in (2, 3), f"version {self._version} of qcow2 is not known")
        _require(not base and not base_length, "it has a backing file")
        _require(not encryption, "it is encrypted")
        _require(not snapshots and not snapshots_offset, "it has snapshots")
        _require(bits in _CLUSTER_BITS, f"its clusters have 2^{bits} octets")
        _require(0 < self.size <= most, f"the disk in it has {self.size} octets, and the volume {most}")
        self._bits, self._cluster = bits, 1 << bits
        self._whole = -(-length // self._cluster)  # clusters of the file; the last may be cut
        self._uses = bytearray(self._whole)
        self._use(0, _META)
        self._extensions(self._features() if self._version > 2 else _HEADER.size)
        needed = -(-self.size // (self._cluster * (self._cluster // 8)))
        _require(needed <= l1_size <= _MOST_TABLE // 8, f"its first table has {l1_size} entries for {needed}")
        counts = table_clusters * self._cluster
        _require(
            0 < counts <= max(_MOST_TABLE, self._cluster), f"its counts of references have {counts} octets"
        )
        first = self._table(l1_offset, l1_size * 8, "first table")
        self._counts(self._table(table_offset, counts, "table of counts"))
        _require(not any(first[needed:]), "its first table goes beyond the disk in it")
        for entry in first[:needed]:
            if entry:
                _require(not entry & ~(_OFFSET | _COPIED), "an entry of its first table has unknown bits")
                self._second(self._table(entry & _OFFSET, self._cluster, "second table"))

    def _read(self, offset: int, size: int, name: str) -> bytes:
        text = os.pread(self._file, size, offset) if offset + size <= self._length else b""
        _require(len(text) == size, f"{name} is not whole")
        return text

    def _use(self, number: int, use: int) -> None:
        """Note the use of a cluster of the file; only packed clusters share one."""
        _require(0 <= number < self._whole, "a part of it lies behind its end")
        before = self._uses[number]
        _require(before == _FREE or before == use == _PACKED, "parts of it overlap")
        self._uses[number] = use

    def _features(self) -> int:
        """Read what version 3 adds to the header; return the header's length."""
        text = self._read(_HEADER.size, _LATER.size, "the header")
        incompatible, compatible, autoclear, order, size = map(int, _LATER.unpack(text))
        _require(not incompatible, f"it needs the features {incompatible:#x}")
        _require(not compatible & ~_LAZY, f"it has the features {compatible:#x}")
        _require(not autoclear, f"it has the features {autoclear:#x}, which other programs must clear")
        _require(order <= _MOST_REFCOUNT_ORDER, f"its counts of references have 2^{order} bits")
        fits = _V3_LENGTH <= size <= self._cluster and size % 8 == 0
        _require(fits, f"its header has {size} octets")
        more = self._read(_COMPRESSION, size - _COMPRESSION, "the header")
        _require(not any(more), "its header has unknown fields")
        return size

    def _extensions(self, offset: int) -> None:
        """Read header extensions; the header has room for them in the first cluster."""
        for _ in range(_MOST_EXTENSIONS):
            _require(offset + _EXTENSION.size <= self._cluster, "its header extensions do not end")
            kind, size = _EXTENSION.unpack(self._read(offset, _EXTENSION.size, "a header extension"))
            if not kind:
                return
            _require(kind == _NAMES, f"it has the header extension {kind:#x}")
            offset += _EXTENSION.size + -(-size // 8) * 8
        raise RefusedError("it has too many header extensions")

    def _table(self, offset: int, size: int, name: str) -> tuple[int, ...]:
        _require(offset % self._cluster == 0, f"its {name} begins inside a cluster")
        entries = struct.unpack(f">{size // 8}Q", self._read(offset, size, f"its {name}"))
        for number in range(offset >> self._bits, -(-(offset + size) >> self._bits)):
            self._use(number, _META)
        return entries

    def _counts(self, table: tuple[int, ...]) -> None:
        for entry in filter(None, table):
            _require(entry % self._cluster == 0, "a block of its counts begins inside a cluster")
            self._use(entry >> self._bits, _META)

    def _second(self, table: tuple[int, ...]) -> None:
        for entry in filter(None, table):
            if entry & _COMPRESSED:
                self._packed(entry & (_COMPRESSED - 1))
                continue
            known = _OFFSET | _COPIED | (_ZEROS if self._version > 2 else 0)
            _require(not entry & ~known, "an entry of a second table has unknown bits")
            offset = entry & _OFFSET
            _require(offset % self._cluster == 0, "a cluster begins inside another one")
            if offset:
                self._use(offset >> self._bits, _DATA)

    def _packed(self, entry: int) -> None:
        """Note the use of a compressed cluster: its offset, then the sectors that follow its first."""
        bits = 62 - (self._bits - 8)
        offset, sectors = entry & ((1 << bits) - 1), entry >> bits
        end = (offset // _SECTOR + sectors + 1) * _SECTOR
        for number in range(offset >> self._bits, -(-end >> self._bits)):
            if number < self._whole or number << self._bits < self._length:
                self._use(number, _PACKED)
        _require(offset < self._length, "a part of it lies behind its end")
