"""Stands in for the gate of imported images, as a parser that was taken over (STO-03).

It runs in the gate's place and confinement. It prints each attempt, with an empty text if it succeeded, or
the reason why it did not. It stays for a while, so that its limits can be read from outside.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import socket
import sys
import time
from collections.abc import Callable

FOLDER = "/import"
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # clone(2)
_BIND = 4096  # mount(2)
_MUCH = 3 << 30  # octets of memory
_MANY = 400  # descriptors
_STAYS = 4.0  # seconds


def _opens(path: str) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def _writes(path: str) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600))


def _connects(family: int, kind: int, address: object) -> Callable[[], object]:
    def connect() -> None:
        with socket.socket(family, kind) as client:
            client.settimeout(3)
            client.connect(address)  # type: ignore[arg-type]

    return connect


def _called(number: str, *arguments: object) -> Callable[[], object]:
    def call() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if getattr(libc, number)(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    return call


def _grows(most: int) -> Callable[[], object]:
    def grow() -> None:
        name = sorted(os.listdir(f"{FOLDER}/out"))[0]
        with open(f"{FOLDER}/out/{name}", "r+b", buffering=0) as file:
            file.seek(most)
            file.write(b"x")

    return grow


def _many() -> None:
    held = []
    try:
        for _ in range(_MANY):
            held.append(os.open(f"{FOLDER}/request.json", os.O_RDONLY))
    finally:
        for file in held:
            os.close(file)


def _processes() -> None:
    others = [name for name in os.listdir("/proc") if name.isdecimal() and name != str(os.getpid())]
    if not others:
        raise OSError(0, "no other process is seen")


def attempts(request: dict[str, object]) -> dict[str, str]:
    """Return each attempt, and the reason why it failed; it is empty if it succeeded."""
    most = int(str(request["most"]))
    tried: dict[str, Callable[[], object]] = {
        "control: its request is read": _opens(f"{FOLDER}/request.json"),
        "write the gate": _writes(f"{FOLDER}/gate.py"),
        "make a file beside the volumes": _writes(f"{FOLDER}/out/more"),
        "make a file beside the images": _writes(f"{FOLDER}/in/more"),
        "make a file at the top": _writes("/more"),
        "open an internet socket": lambda: socket.socket(socket.AF_INET).close(),
        "open a local socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "connect to the node": _connects(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", request["port"])),
        "become root": lambda: os.setuid(0),
        "make a user namespace": _called("unshare", _NEW_USER),
        "make a network namespace": _called("unshare", _NEW_NETWORK),
        "mount": _called("mount", b"/usr", b"/import/in", None, _BIND, None),
        "see another process": _processes,
        "use 3 GiB of memory": lambda: mmap.mmap(-1, _MUCH).close(),
        "open 400 files": _many,
        "write behind the end of the volume": _grows(most),
        "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536)),
    }
    for path in request["paths"]:  # type: ignore[attr-defined]
        tried[f"open {path}"] = _opens(path)
    found = {}
    for name, act in tried.items():
        try:
            act()
            found[name] = ""
        except (OSError, ValueError, MemoryError) as error:
            found[name] = f"{type(error).__name__}: {error}"[:200]
    return found


def main() -> None:
    """Try everything, print the answers, and stay."""
    with open(f"{FOLDER}/request.json", encoding="utf-8") as file:
        request = json.load(file)
    print(json.dumps(attempts(request)))
    sys.stdout.flush()
    time.sleep(_STAYS)


if __name__ == "__main__":
    main()
