"""Lets a node's tools look at hostile volumes, and sees which of them open the file that is named in them.

It runs as root on a node, while guests have written the header of a qcow2 image into their raw volumes.
"""

from __future__ import annotations

import ctypes
import os
import subprocess

_OPEN = 0x20  # IN_OPEN (inotify(7))
_EVENT = 16  # octets of an event without a name
_NONBLOCK = 0o4000
_TIMEOUT = 60.0  # seconds for a program
_TEXT = 20_000  # characters of an output that are kept
_HELPER = "/usr/lib/libvirt/virt-aa-helper"


def collect(request: dict[str, object]) -> dict[str, object]:
    """Return which tools have opened the named file, and what libvirt makes of each volume.

    Two looks must open it: reading it, and a tool that finds out the format of what a volume's key decrypts.

    Args:
        request: ``named``, the file that hostile headers name, which is made and removed; and ``volumes``:
            domain, its UUID, target, path, size in bytes, the domain's live XML, and the key, of each
            hostile volume. The key goes on to qemu-img's standard input.
    """
    path = str(request["named"])
    with open(path, "w", encoding="utf-8") as file:
        file.write("named by a guest\n")
    try:
        return _looked(path, request["volumes"])  # type: ignore[arg-type]
    finally:
        os.unlink(path)


def _looked(path: str, volumes: list[list[str]]) -> dict[str, object]:
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(_NONBLOCK)
    if watch < 0 or libc.inotify_add_watch(watch, path.encode(), _OPEN) < 0:
        raise OSError(ctypes.get_errno(), f"{path} cannot be watched")
    opened: dict[str, int] = {}
    texts: dict[str, str] = {}

    def run(name: str, *words: str, text: str = "") -> str:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, check=False, timeout=_TIMEOUT, errors="replace"
        )
        opened[name] = opened.get(name, 0) + _events(watch)
        printed = f"{done.stdout}\n{done.stderr}"
        return printed[:_TEXT] if done.returncode == 0 else f"status {done.returncode}: {printed[:200]}"

    run("control", "cat", path)
    pools = [
        name for name in run("pools", "virsh", "-q", "pool-list", "--all", "--name").splitlines() if name
    ]
    for pool in pools:
        run("pools", "virsh", "-q", "pool-refresh", pool)
    sizes = [f"domblkinfo {domain} {target}" for domain, _, target, *_ in volumes]
    resizes = [f"blockresize {domain} {target} {size}B" for domain, _, target, _, size, *_ in volumes]
    texts["sizes"] = run("sizes", "virsh", "-q", "; ".join([*resizes, *sizes]))
    for _, uuid, _, volume, _, xml, key in volumes:
        run(f"looking at {volume} without its key", "qemu-img", "info", "-U", "--backing-chain", volume)
        inner = f"file.driver=luks,file.key-secret=key,file.file.driver=file,file.file.filename={volume}"
        secret = ("--object", "secret,id=key,file=/dev/stdin")
        run(  # "qemu-img info" would not decrypt anything
            f"probing {volume}", "qemu-io", "-r", "-U", *secret, "--image-opts", inner, "-c", "read 0 512",
            text=key,
        )  # fmt: skip
        texts[f"profile {volume}"] = run(
            "profile", _HELPER, "--dryrun", "-r", "-u", f"libvirt-{uuid}", text=xml
        )
    os.close(watch)
    return {"opened": opened, "pools": pools, "texts": texts}


def _events(watch: int) -> int:
    """Return the number of events since the last look; the kernel joins those that are alike."""
    try:
        return len(os.read(watch, 1 << 16)) // _EVENT
    except BlockingIOError:
        return 0
