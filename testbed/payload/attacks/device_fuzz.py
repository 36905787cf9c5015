"""Writes nonsense to every virtual device of a guest, and sends malformed frames (BND-01, BND-03).

This is the only program of a throw-away guest, started by its initramfs. What it does follows from a seed.
Seed and progress are on the console. The guest may die of it; nothing else may.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_BUS = "/sys/bus/pci/devices"
_ALL = 3  # MCL_CURRENT | MCL_FUTURE, mlockall(2)
_MAPPED = 1 << 14  # octets of a BAR that are written
_CONFIG = 256  # octets of a device's configuration
_REPORTED = 20  # writes between two lines on the console
_FRAMES = 200
# Ranges of ports of a PC that QEMU emulates: timer, clock, disks, fw_cfg, hot-plug. The serial port is the
# console, so it is left out.
_PORTS = (
    (0x40, 4), (0x70, 8), (0x80, 16), (0x170, 8), (0x1F0, 8), (0x3F0, 8), (0x402, 1), (0x510, 12),
    (0xAE0, 32), (0xCD8, 32), (0xAF00, 32),
)  # fmt: skip
# Interrupts, keyboard, DMA, ACPI, reset, PCI: a guest cannot live without them, or is switched off by them.
_DEADLY_PORTS = ((0x20, 2), (0xA0, 2), (0x4D0, 2), (0x60, 5), (0xC0, 32), (0x600, 128), (0x92, 1), (0xCF8, 8))
# mov edx, edi; mov eax, esi; then out dx, al / ax / eax or in al, dx; ret: one function each _STEP octets.
_STEP = 16
_CODE = b"".join(
    (b"\x89\xfa\x89\xf0" + instruction + b"\xc3").ljust(_STEP, b"\x90")
    for instruction in (b"\xee", b"\x66\xef", b"\xef", b"\xec")
)
_WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)

_KEPT: list[mmap.mmap] = []  # mappings that functions point into


def attack(seconds: float, seed: int | None = None) -> int:
    """Attack devices and ports, later also those that the guest lives from; return the number of writes.

    A guest that has died boots and attacks again, with another seed, which its console shows.

    Args:
        seconds: for the whole attack.
        seed: of an attack that is to be repeated.
    """
    seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    print(f"seed={seed}.", flush=True)
    ctypes.CDLL(None).mlockall(_ALL)  # the disk with this program may be gone soon
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    _frames(chance)
    count = 0
    harmless, deadly = _devices()
    targets = [*map(_device, harmless), _ports(_PORTS)]
    later = [*map(_device, deadly), _ports(_DEADLY_PORTS)]
    while time.monotonic() < end:
        if later and time.monotonic() > end - seconds / 3:
            targets, later = [*targets, *later], []
        try:
            chance.choice(targets)(chance)
        except OSError:
            continue
        count += 1
        if count % _REPORTED == 0:
            _report(count)
    _report(count)
    return count


def _report(count: int) -> None:
    print(f"writes={count}.", flush=True)


def _devices() -> tuple[list[str], list[str]]:
    """Return the guest's PCI devices, and those that it cannot live without.

    Bridges own its memory map, and disks hold this program.
    """
    deadly = {name for name in os.listdir(_BUS) if _text(name, "class")[:4] in ("0x06", "0x01")}
    return sorted({*os.listdir(_BUS)} - deadly), sorted(deadly)


def _text(device: str, name: str) -> str:
    with open(f"{_BUS}/{device}/{name}", encoding="ascii") as file:
        return file.read().strip()


def _device(name: str) -> Callable[[random.Random], None]:
    """Return a function that writes once to a device: to its configuration, or to one of its BARs."""
    folder = f"{_BUS}/{name}"
    config = os.open(f"{folder}/config", os.O_RDWR)
    bars = [found for number in range(6) if (found := _bar(f"{folder}/resource{number}")) is not None]

    def write(chance: random.Random) -> None:
        size = chance.choice((1, 2, 4))
        if not bars or chance.random() < 0.1:
            # Neither its switch nor its BARs: what is off, or moved away, is not attacked any more.
            at = chance.choice((chance.randrange(6, 16), chance.randrange(0x28, _CONFIG)))
            os.pwrite(config, chance.randbytes(size), at)
        else:
            room = chance.choice(bars)
            size = chance.choice((1, 2, 4, 8))
            at = chance.randrange(0, len(room) - size + 1) // size * size
            value = chance.choice(_WORDS) if chance.random() < 0.5 else chance.getrandbits(64)
            kind = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}[size]
            kind.from_buffer(room, at).value = value & ((1 << 8 * size) - 1)

    return write


def _bar(path: str) -> mmap.mmap | None:
    try:
        file = os.open(path, os.O_RDWR)
        size = min(os.stat(path).st_size, _MAPPED)
        return mmap.mmap(file, size) if size else None
    except (OSError, ValueError):  # one of ports, or none
        return None


def _ports(ranges: tuple[tuple[int, int], ...]) -> Callable[[random.Random], None]:
    """Return a function that writes an octet, word or double word to a port of some ranges, and reads one.

    Raises:
        OSError: the guest's kernel gives no program access to ports (iopl(2)).
    """
    if ctypes.CDLL(None, use_errno=True).iopl(3):
        raise OSError(ctypes.get_errno(), "no access to ports")
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code[: len(_CODE)] = _CODE
    _KEPT.append(code)
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    call = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)
    outs = [call(start + at) for at in (0, _STEP, 2 * _STEP)]
    read = call(start + 3 * _STEP)

    def write(chance: random.Random) -> None:
        first, count = chance.choice(ranges)
        at = first + chance.randrange(count)
        chance.choice(outs)(
            at, chance.choice(_WORDS[:8]) if chance.random() < 0.3 else chance.getrandbits(32)
        )
        read(at, 0)

    return write


def _frames(chance: random.Random) -> None:
    """Send frames with valid beginnings and nonsense behind them from the first interface."""
    import _socket as socket  # noqa: PLC0415 - only here, and before the disk is attacked

    name = next(iter(sorted(set(os.listdir("/sys/class/net")) - {"lo"})), "")
    if not name:
        return
    _set_up(name)
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind((name, 0))
    kinds = (0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8, 0x88CC, 0x8847, 0x8863, 0x6558, 0x0001)
    for _ in range(_FRAMES):
        target = chance.choice(
            (b"\xff" * 6, b"\x01\x80\xc2\x00\x00\x0e", b"\x33\x33\0\0\0\x01", chance.randbytes(6))
        )
        frame = target + chance.randbytes(6) + struct.pack(">H", chance.choice(kinds))
        try:
            opened.send((frame + chance.randbytes(chance.randrange(0, 1400)))[:1500])
        except OSError:
            continue
    opened.close()


def _set_up(name: str) -> None:
    """Set an interface up (netdevice(7), SIOCSIFFLAGS)."""
    import _socket as socket  # noqa: PLC0415 - see above
    import fcntl  # noqa: PLC0415 - see above

    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", name.encode(), 1))
    control.close()
