"""Submits hostile images to the gate of a node, and sees which files are opened (STO-03).

It runs as root on a node. Images name a file of the node, a file beside them and a TCP port. The kernel
reports each time that one of these files is opened (inotify(7)), whichever process does it.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from testbed.payload.images.hostile_images import MOST, NEIGHBOUR, Image, write
from testbed.payload.images.node_import import HERE, asked, lay, workspace

_OPEN = 0x20  # IN_OPEN
_EVENT = 16  # octets of an event without a name
_NONBLOCK = 0o4000
_ROOM = 300 * MOST  # octets that all files may take; those of volumes are almost empty
_TIMEOUT = 60.0  # seconds for a program
_PAUSE = 0.1
_LIMITS = {
    "Max cpu time", "Max file size", "Max open files", "Max address space", "Max core file size",
}  # fmt: skip
_STATUS = {"Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"}
_GROUP_LIMITS = ("memory.max", "memory.swap.max", "pids.max")
_GROUP = Path("/sys/fs/cgroup/system.slice")


class _Watch:
    """Counts how often files are opened and a port is reached."""

    def __init__(self, paths: list[str]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._files = self._libc.inotify_init1(_NONBLOCK)
        for path in paths:
            if self._files < 0 or self._libc.inotify_add_watch(self._files, path.encode(), _OPEN) < 0:
                raise OSError(ctypes.get_errno(), f"{path} cannot be watched")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])

    def seen(self) -> int:
        """Return the events since the last look; the kernel joins those that are alike."""
        count = 0
        with suppress(BlockingIOError):
            count += len(os.read(self._files, 1 << 16)) // _EVENT
        while True:
            try:
                self._listener.accept()[0].close()
                count += 1
            except BlockingIOError:
                return count

    def close(self) -> None:
        """Stop watching."""
        self._listener.close()
        os.close(self._files)


def collect(request: dict[str, object]) -> dict[str, object]:
    """Return what became of each image, what was opened, and what a taken-over gate could do.

    Args:
        request: ``gate`` and ``taken``, programs; ``command``, that runs the first; ``unit``, its name;
            ``seed`` of the images; ``named``, a file that they name, which is made and removed; ``paths``
            that the gate must not open; ``seconds`` for an image.
    """
    named = str(request["named"])
    with open(named, "w", encoding="utf-8") as file:
        file.write("named by an image\n")
    try:
        with workspace(_ROOM) as folder:
            neighbour = folder / "in" / NEIGHBOUR
            neighbour.write_text("another image\n")
            neighbour.chmod(0o644)
            watch = _Watch([named, str(neighbour)])
            try:
                return _looked(request, folder, watch)
            finally:
                watch.close()
    finally:
        os.unlink(named)


def _looked(request: dict[str, object], folder: Path, watch: _Watch) -> dict[str, object]:
    named, inside = str(request["named"]), folder / "in"
    command, seconds = request["command"], float(str(request["seconds"]))
    assert isinstance(command, list)
    began = time.monotonic()
    images = write(str(inside), int(str(request["seed"])), named, watch.port) + _of_qemu(inside)
    for entry in inside.iterdir():
        if not entry.is_symlink():
            entry.chmod(0o755 if entry.is_dir() else 0o644)
    opened = {"before": watch.seen()}
    for path in (named, str(inside / NEIGHBOUR)):
        subprocess.run(["cat", path], capture_output=True, check=True, timeout=_TIMEOUT)
        opened[f"control {Path(path).name if path != named else 'named'}"] = watch.seen()
    socket.create_connection(("127.0.0.1", watch.port), timeout=5).close()
    opened["control port"] = watch.seen()
    chain = ["qemu-img", "info", "-f", "qcow2", "--backing-chain", str(inside / "chain-with-format")]
    subprocess.run(chain, capture_output=True, check=False, timeout=_TIMEOUT)
    opened["control chain"] = watch.seen()
    started = time.monotonic()
    spent = {"images": round(started - began, 2)}
    lay(folder, str(request["gate"]), MOST, seconds, [(image.name, image.form) for image in images])
    told = asked(folder, command, seconds * 8)
    opened["gate"] = watch.seen()
    spent["gate"] = round(time.monotonic() - started, 2)
    answer = told.pop("answer")
    answers = answer if isinstance(answer, dict) else {}
    results = [_result(image, answers.get(image.name), folder) for image in images]
    taken = _taken(request, folder, watch.port)
    opened["taken"] = watch.seen()
    spent["all"] = round(time.monotonic() - began, 2)
    return {"opened": opened, "spent": spent, "gate": told, "taken": taken, "images": results}


def _of_qemu(folder: Path) -> list[Image]:
    """Make good images with the node's own qemu-img; return them with the disk in each."""
    content = (folder / "good-raw").read_bytes()
    found = []
    for name, options in (("good-of-qemu", []), ("good-of-qemu-packed", ["-c", "-o", "compat=0.10"])):
        words = ["qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2", str(folder / "good-raw")]
        subprocess.run([*words, str(folder / name)], check=True, capture_output=True, timeout=_TIMEOUT)
        found.append(Image(name, None, disk=content))
    return found


def _result(image: Image, answer: object, folder: Path) -> list[object]:
    """Return an image's name, whether it must be imported, the gate's answer, and the state of its volume.

    The answer is the reason of a refusal, seconds of CPU time and KiB; or None.

    The volume is ``whole`` if it has the octets of the disk, ``blank`` if it has none, and else ``other``.
    """
    target = folder / "out" / image.name
    blank = not target.stat().st_blocks  # it was a hole, and is one
    whole = image.disk is not None and target.read_bytes() == image.disk.ljust(MOST, b"\0")
    state = "whole" if whole else "blank" if blank else "other"
    told = isinstance(answer, dict) and [answer.get(name) for name in ("refused", "seconds", "memory")]
    return [image.name, image.disk is not None, told or None, state]


def _taken(request: dict[str, object], folder: Path, port: int) -> dict[str, object]:
    """Run a hostile program in the gate's place, and read its limits from outside meanwhile."""
    command, unit = request["command"], str(request["unit"])
    assert isinstance(command, list)
    (folder / "gate.py").write_text(str(request["taken"]))
    (folder / "request.json").write_text(json.dumps({"most": MOST, "port": port, "paths": request["paths"]}))
    words = [word.replace(HERE, str(folder)) for word in command]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        outside: dict[str, str] = {}
        try:
            while process.poll() is None:
                outside = _outside(f"{unit}.service") or outside
                time.sleep(_PAUSE)
            printed, errors = process.communicate(timeout=_TIMEOUT)
        finally:
            process.kill()
    return {"printed": printed[:20_000], "errors": errors[-400:], "outside": outside}


def _outside(unit: str) -> dict[str, str]:
    """Return what the kernel says about the process of a unit, or nothing if it is not there."""
    group = _GROUP / unit
    try:
        pid = (group / "cgroup.procs").read_text().split()[0]
        found = {name: (group / name).read_text().strip() for name in _GROUP_LIMITS}
        if b"gate.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return {}
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
            if line[:26].strip() in _LIMITS:
                found[line[:26].strip()] = line[26:47].strip()
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in _STATUS:
                found[name] = value.split()[0]
        for name in ("net", "mnt", "ipc"):
            own, other = (os.readlink(f"/proc/{who}/ns/{name}") for who in ("self", pid))
            found[f"{name} namespace"] = "the node's" if own == other else "its own"
        return found
    except (OSError, IndexError):
        return {}
