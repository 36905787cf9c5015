"""The beginning of a disk that claims to be several things, for programs that guess (STO-08). Pure."""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

SIZE = 8192  # octets
_SECTOR = 512
_WORD = 0xFFFFFFFF
# MBR: one partition of type 8e (LVM) from sector 2048 on.
_MBR_ENTRY, _MBR_MARK = struct.pack("<B3sB3sII", 0x80, b"\0\0\0", 0x8E, b"\0\0\0", 2048, 4096), b"\x55\xaa"
# LVM2 (lib/format_text/layout.h): a label in sector 1, whose checksum begins with this value.
_LVM_LABEL, _LVM_TYPE, _LVM_CHECKSUM, _LVM_SKIPPED = b"LABELONE", b"LVM2 001", 0xF597A6CF, 20
# ext4 (kernel documentation, "Super Block").
_EXT4_AT, _EXT4_MAGIC, _EXT4_EXTENTS = 1024, 0xEF53, 0x40
# md, version 1.2 (include/uapi/linux/raid/md_p.h).
_MD_AT, _MD_MAGIC, _MD_LENGTH, _MD_DEVICES = 4096, 0xA92B4EFC, 256, 2


def disguise(label: str, identity: UUID) -> bytes:
    """Return octets with a partition table, and with the marks of LVM, of ext4 and of an array of md.

    Args:
        label: label of the file system, and name of the array; at most 16 octets.
        identity: UUID of the file system, the array and the volume.

    Raises:
        ValueError: the label is too long.
    """
    name = label.encode()
    if len(name) > 16:
        raise ValueError(f"{label!r} is longer than 16 octets")
    room = bytearray(SIZE)
    for at, part in (
        (446, _MBR_ENTRY),
        (510, _MBR_MARK),
        (_SECTOR, _lvm(identity)),
        (_EXT4_AT, _ext4(name, identity)),
        (_MD_AT, _md(name, identity)),
    ):
        room[at : at + len(part)] = part
    return bytes(room)


def _lvm(identity: UUID) -> bytes:
    volume = identity.hex.encode()  # 32 characters, as LVM's own identifiers
    body = struct.pack("<I8s", 32, _LVM_TYPE) + volume + struct.pack("<Q", 1 << 26)
    body = body.ljust(_SECTOR - _LVM_SKIPPED, b"\0")
    checksum = ~zlib.crc32(body, ~_LVM_CHECKSUM & _WORD) & _WORD
    return _LVM_LABEL + struct.pack("<QI", 1, checksum) + body


def _ext4(name: bytes, identity: UUID) -> bytes:
    room = bytearray(_EXT4_AT)
    struct.pack_into("<IIII", room, 0, 16384, 65536, 0, 0)  # inodes and blocks
    struct.pack_into("<II", room, 20, 1, 0)  # first block, and blocks of 1,024 octets
    struct.pack_into("<III", room, 32, 8192, 8192, 2048)  # per group
    struct.pack_into("<HHHHHHII", room, 52, 0, 20, _EXT4_MAGIC, 1, 1, 0, 0, 0)
    struct.pack_into("<IIHHIHH", room, 72, 0, 1, 0, 0, 11, 256, 0)  # revision 1
    struct.pack_into("<III", room, 92, 0, _EXT4_EXTENTS, 0)
    room[104:120] = identity.bytes
    room[120 : 120 + len(name)] = name
    return bytes(room)


def _md(name: bytes, identity: UUID) -> bytes:
    length = _MD_LENGTH + 2 * _MD_DEVICES
    room = bytearray(length)
    struct.pack_into("<IIII", room, 0, _MD_MAGIC, 1, 0, 0)
    room[16:32] = identity.bytes
    room[32 : 32 + len(name)] = name
    struct.pack_into("<QIIQII", room, 64, 0, 1, 0, 65536, 0, _MD_DEVICES)
    struct.pack_into("<QQQ", room, 128, 2048, 65536, _MD_AT // _SECTOR)
    room[168:184] = identity.bytes
    struct.pack_into("<I", room, 220, _MD_DEVICES)
    struct.pack_into("<HH", room, _MD_LENGTH, 0, 1)
    words = struct.unpack(f"<{length // 4}I", room)
    total = sum(words)
    struct.pack_into("<I", room, 216, (total & _WORD) + (total >> 32) & _WORD)
    return bytes(room)
