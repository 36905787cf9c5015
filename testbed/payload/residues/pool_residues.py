"""Searches the block device below a folder, free blocks included, and tells what identifies a LUKS container.

It runs as root on a node: one file, standard library only. The layout of ext4 is that of the kernel's
documentation (filesystems/ext4), that of a container is the LUKS On-Disk Format 1.2.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 4 << 20  # octets; a multiple of every block size
_SAMPLE = 64  # octets of a slot's key material that are searched for
_MOST = 5  # places that are kept of each text
_SECTOR = 512
_SLOTS, _SLOT, _FIRST_SLOT = 8, struct.Struct(">II32sII"), 208
_ACTIVE = 0x00AC71F3
_MAGIC = b"LUKS\xba\xbe\x00\x01"
_SUPERBLOCK, _EXT4 = 1024, 0xEF53
_CHECKED, _META_GROUPS, _WIDE = 0x410, 0x10, 0x80  # gdt_csum or metadata_csum; meta_bg; 64bit
_UNUSED = 0x2  # EXT4_BG_BLOCK_UNINIT: no block of the group was ever given out

Facts = dict[str, object]


def search(request: Facts) -> Facts:
    """Return where texts are on the block device below a folder.

    All blocks are read that the file system has ever given out. A text of the program's own is in a file of
    the folder meanwhile, and must be found as well.

    Args:
        request: ``place``, the folder; ``texts``, octets in hexadecimal by name; ``enough``, names of texts:
            the search ends when all of them are found, if there are any; ``seconds`` that it may take.
    """
    texts = _octets(request["texts"])
    enough = {str(name) for name in request["enough"]}  # type: ignore[attr-defined]
    place, end = str(request["place"]), time.monotonic() + float(str(request["seconds"]))
    own, control = secrets.token_bytes(32), f"{place}/.control-{secrets.token_hex(8)}"
    try:
        with open(os.open(control, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(own)
        os.sync()
        return _searched(_device(place), {"": own, **texts}, {"", *enough} if enough else set(), end)
    finally:
        os.unlink(control)


def _octets(texts: object) -> dict[str, bytes]:
    return {str(name): bytes.fromhex(text) for name, text in texts.items()}  # type: ignore[attr-defined]


def _device(place: str) -> str:
    number = os.stat(place).st_dev
    return (
        f"/dev/{os.path.basename(os.path.realpath(f'/sys/dev/block/{os.major(number)}:{os.minor(number)}'))}"
    )


def _searched(device: str, texts: dict[str, bytes], enough: set[str], end: float) -> Facts:
    found: dict[str, set[int]] = {name: set() for name in texts}
    longest = max(len(text) for text in texts.values())
    descriptor = os.open(device, os.O_RDONLY)  # through the cache, in which descriptors of groups are newest
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        ranges = list(given_out(descriptor, size))
    finally:
        os.close(descriptor)
    read, zeros, buffer = 0, bytes(_CHUNK), mmap.mmap(-1, _CHUNK)
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        before, place = b"", 0  # the end of the piece before, and where the next one begins
        for offset, length in _pieces(ranges):
            if time.monotonic() > end or (enough and all(found[name] for name in enough)):
                break
            piece = buffer[: min(os.preadv(descriptor, [buffer], offset), length)]
            if not piece:
                break
            before = before if offset == place else b""
            if piece != zeros[: len(piece)]:
                for name, text in texts.items():
                    found[name] |= _places(before + piece, text, offset - len(before))
            before, place = piece[1 - longest :], offset + len(piece)
            read += len(piece)
    finally:
        os.close(descriptor)
    return {
        "size": size,
        "chosen": sum(stop - start for start, stop in ranges),
        "read": read,
        "found": {name: sorted(places)[:_MOST] for name, places in found.items()},
    }


def _pieces(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, stop in ranges:
        yield from ((offset, min(_CHUNK, stop - offset)) for offset in range(start, stop, _CHUNK))


def _places(whole: bytes, text: bytes, start: int) -> set[int]:
    """Return the first places of a text in a piece of the device that begins at a place."""
    found: set[int] = set()
    at = whole.find(text)
    while at >= 0 and len(found) < _MOST:
        found.add(start + at)
        at = whole.find(text, at + 1)
    return found


def given_out(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield beginning and end of the parts of a device whose blocks ext4 has ever given out.

    A group of blocks that was never used has a mark, which the kernel only takes away. Everything is yielded
    if the file system has no such marks, or is another one.
    """
    block = os.pread(descriptor, 1024, _SUPERBLOCK)
    head = struct.unpack_from("<IIIIIIIIIII", block)
    first, scale, count = head[5], head[6], head[8]
    magic, wide = struct.unpack_from("<H", block, 56)[0], struct.unpack_from("<H", block, 254)[0]
    incompatible, checked = struct.unpack_from("<II", block, 96)
    if magic != _EXT4 or not checked & _CHECKED or incompatible & _META_GROUPS:
        yield 0, size
        return
    blocks = head[1] | (struct.unpack_from("<I", block, 0x150)[0] << 32 if incompatible & _WIDE else 0)
    octets, step = 1024 << scale, wide if incompatible & _WIDE else 32
    groups = -(-(blocks - first) // count)
    table = os.pread(descriptor, groups * step, (first + 1) * octets)
    start = 0
    for group in range(groups):
        stop = min((first + (group + 1) * count) * octets, size)
        if struct.unpack_from("<H", table, group * step + 18)[0] & _UNUSED and group:
            if start < (begin := (first + group * count) * octets):
                yield start, begin
            start = stop
    yield start, size


def container(request: Facts) -> Facts:
    """Return what identifies a LUKS container and its keys, in hexadecimal by name.

    Args:
        request: ``file``, its path.

    Raises:
        ValueError: it is no container, or has no key.
    """
    with open(str(request["file"]), "rb") as file:
        head = file.read(_FIRST_SLOT + _SLOTS * _SLOT.size)
        if not head.startswith(_MAGIC):
            raise ValueError("no LUKS container of version 1")
        (octets,) = struct.unpack_from(">I", head, 108)
        texts = {"the header": head[112:164], "the name": head[168:204]}  # digest with salt; UUID
        for number in range(_SLOTS):
            active, _, salt, offset, stripes = _SLOT.unpack_from(head, _FIRST_SLOT + number * _SLOT.size)
            if active != _ACTIVE:
                continue
            texts[f"the salt of slot {number}"] = salt
            for name, at in (("beginning", 0), ("end", octets * stripes - _SAMPLE)):
                file.seek(offset * _SECTOR + at)
                texts[f"the {name} of slot {number}"] = file.read(_SAMPLE)
    if len(texts) <= 2:
        raise ValueError("no slot of the container has a key")
    return {"texts": {name: text.hex() for name, text in texts.items()}}


def files(request: Facts) -> Facts:
    """Return, for each file by path, which texts it holds, and where its content begins.

    The content of a sparse file begins where its first block behind a place is that is no hole; it is None
    if there is none.

    Args:
        request: ``files``, the place behind which content counts, by path; ``texts``, octets in hexadecimal
            by name.
    """
    texts, told = _octets(request["texts"]), {}
    os.sync()
    for path, head in request["files"].items():  # type: ignore[attr-defined]
        with open(path, "rb") as file:
            whole = file.read()
            try:
                content = os.lseek(file.fileno(), int(head), os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                content = None
            told[path] = {
                "size": len(whole),
                "used": os.fstat(file.fileno()).st_blocks * _SECTOR,
                "content": content,
                "found": [name for name, text in texts.items() if text in whole],
            }
    return {"files": told}
