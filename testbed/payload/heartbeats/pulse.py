"""Takes the pulse of a node's guests from outside of them: their processors and their network cards (DOS-01).

It runs as root on nodes. At each beat it puts a question of ARP on the interface of every guest. The question
does not pass the virtual switch and names no sender's address, so it changes no guest's table of neighbours.
The answer names the beat. Whether a guest's processors ran is what the kernel counts for the worker's
threads. The program's own clock shows whether the node stood still meanwhile.
"""

from __future__ import annotations

import _socket as socket
import array
import contextlib
import os
import select
import struct
import time

_RUN = "/run/libvirt/qemu"
_ARP, _REQUEST, _REPLY = b"\x08\x06", b"\x00\x01", b"\x00\x02"
_ETHER_IPV4 = b"\x00\x01\x08\x00\x06\x04"  # kinds and lengths of addresses in ARP
_ALL = 3  # all protocols: those of one are heard only behind the switch, which takes all frames
# A filter (linux/filter.h): the half-word at 12 is ARP, and the packet does not leave; 128 octets are kept.
_FILTER = (
    (0x28, 0, 0, 12),
    (0x15, 0, 3, 0x0806),
    (0x28, 0, 0, 0xFFFFF004),
    (0x15, 1, 0, 4),
    (0x06, 0, 0, 128),
    (0x06, 0, 0, 0),
)
_ATTACH_FILTER = 26
_EVERYONE, _NO_MAC, _NO_ADDRESS = b"\xff" * 6, bytes(6), bytes(4)
_TICK = 0.1  # seconds between two looks at the clock
_PROCESSOR = ("CPU ", "ALL CPUs")  # beginnings of names of QEMU's threads that run a guest's processors
_FRAME = 128  # octets of an answer that are read

Request = dict[str, object]
Times = dict[str, int]


class Wire:
    """A guest's interface on the node: questions go in, and answers come out.

    Args:
        tap: name of the interface.
        address: of the guest, four octets.
        token: the beginning of the sender's MAC address in a question, four octets.
    """

    def __init__(self, tap: str, address: bytes, token: bytes) -> None:
        self.asked: list[float] = []
        self.answered: dict[int, float] = {}
        self._address, self._token = address, token
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # hears nothing until it is bound
        self._socket.setblocking(False)
        steps = array.array("B", b"".join(struct.pack("HBBI", *step) for step in _FILTER))
        program = struct.pack("HL", len(_FILTER), steps.buffer_info()[0])
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
        with contextlib.suppress(OSError):  # there is no such interface: no question has an answer
            self._socket.bind((tap, _ALL))

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self._socket.fileno()

    def ask(self) -> None:
        """Send the next question."""
        sender = self._token + len(self.asked).to_bytes(2, "big")
        question = _ETHER_IPV4 + _REQUEST + sender + _NO_ADDRESS + _NO_MAC + self._address
        self.asked.append(time.monotonic())
        with contextlib.suppress(OSError):  # the interface is down or gone: the question has no answer
            self._socket.send(_EVERYONE + sender + _ARP + question)

    def take(self) -> None:
        """Read one frame; it counts if it answers a question of ours."""
        try:
            frame = self._socket.recv(_FRAME)
        except OSError:
            return
        if frame[12:22] != _ARP + _ETHER_IPV4 + _REPLY or frame[28:32] != self._address:
            return
        number = int.from_bytes(frame[4:6], "big")
        if frame[:4] == self._token and number < len(self.asked) and number not in self.answered:
            self.answered[number] = time.monotonic() - self.asked[number]

    def close(self) -> None:
        """Close the interface."""
        self._socket.close()

    def told(self) -> dict[str, object]:
        """Return how many questions were asked, and which were answered after how many seconds."""
        return {"asked": len(self.asked), "answered": {str(n): round(s, 4) for n, s in self.answered.items()}}


def collect(request: Request) -> dict[str, object]:
    """Return the pulse of guests during some beats.

    An answer has: ``stood``, the longest time in seconds by which the node's clock jumped; and ``guests``: by
    domain, ``worker`` (process id and start of its worker at the beginning and at the end, 0 if there is
    none), ``ran`` (beats after which its processors had run since the one before) and ``wires`` (by
    interface, see `Wire.told`).

    Args:
        request: ``beats``, ``pause`` between two of them (seconds), ``patience`` (seconds in which missing
            answers may come after the last one), and ``guests``: by domain, the address of each interface
            by name.
    """
    beats, pause, patience = (float(str(request[name])) for name in ("beats", "pause", "patience"))
    guests = dict(request["guests"])  # type: ignore[call-overload]
    wires = {
        domain: {tap: Wire(tap, _octets(address), b"\x02" + os.urandom(3)) for tap, address in taps.items()}
        for domain, taps in guests.items()
    }
    flat = [wire for own in wires.values() for wire in own.values()]
    first = {domain: _worker(domain) for domain in guests}
    times = {domain: _times(first[domain][0]) for domain in guests}
    ran: dict[str, list[int]] = {domain: [] for domain in guests}
    stood = 0.0
    for beat in range(int(beats)):
        for wire in flat:
            wire.ask()
        stood = max(stood, _listen(flat, pause))
        for domain in guests:
            now = _times(first[domain][0])
            if any(now[name] > times[domain].get(name, 0) for name in now):
                ran[domain].append(beat)
            times[domain] = now
    end = time.monotonic() + patience
    while time.monotonic() < end and any(len(wire.answered) < len(wire.asked) for wire in flat):
        stood = max(stood, _listen(flat, _TICK))
    for wire in flat:
        wire.close()
    found = {
        domain: {
            "worker": [*first[domain], *_worker(domain)],
            "ran": ran[domain],
            "wires": {tap: wire.told() for tap, wire in wires[domain].items()},
        }
        for domain in guests
    }
    return {"beats": int(beats), "stood": round(stood, 3), "guests": found}


def _octets(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


def _listen(wires: list[Wire], seconds: float) -> float:
    """Take answers for some seconds; return by how much the clock jumped at most."""
    stood, end = 0.0, time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        began, wait = time.monotonic(), min(_TICK, left)
        ready, _, _ = select.select(wires, [], [], wait)
        for wire in ready:
            wire.take()
        stood = max(stood, time.monotonic() - began - wait)
    return stood


def _worker(domain: str) -> tuple[int, int]:
    """Return process id and start time of a guest's worker; 0 if there is none."""
    try:
        with open(f"{_RUN}/{domain}.pid", encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return pid, int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0, 0


def _times(pid: int) -> Times:
    """Return the CPU time in nanoseconds of each thread of a worker that runs a guest's processor."""
    found = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task") if pid else ():
            with open(f"/proc/{pid}/task/{thread}/comm", encoding="utf-8", errors="replace") as file:
                if not file.read().startswith(_PROCESSOR):
                    continue
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                found[thread] = int(file.read().split()[0])
    return found
