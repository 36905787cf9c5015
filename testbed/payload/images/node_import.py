"""Imports an image on a node, as root: a folder in memory, the confined gate, then the volume (STO-03).

This part never reads an image. The gate gets a file of the volume's size, and may change its content only.
The key of the volume is with the last program alone, which takes that file as raw octets.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = "@FOLDER@"  # stands for the folder in a command
_ANSWER = 1 << 20  # octets of the gate's answer that are read
_PEAK = re.compile(r"Memory peak: ([0-9.]+)([BKMG])")
_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BESIDE = 1 << 22  # octets of the folder beside the images and volumes
_SLACK = 60.0  # seconds for systemd
_TRIES = 5  # to make the volume: QEMU gives up on a busy node, where it cannot measure how long a key takes


@contextmanager
def workspace(size: int) -> Iterator[Path]:
    """Make a folder in memory that only root may enter, and remove it in every case.

    Args:
        size: octets of all files in it.
    """
    folder = Path(tempfile.mkdtemp(prefix="testbed-import.", dir="/run"))
    try:
        options = f"size={size + _BESIDE},mode=0700,nosuid,nodev,noexec"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "import", str(folder)], check=True)
        try:
            for name in ("in", "out", "root"):
                (folder / name).mkdir()
                (folder / name).chmod(0o755)  # whatever the mask is
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        folder.rmdir()


def lay(folder: Path, program: str, most: int, seconds: float, images: list[tuple[str, str]]) -> None:
    """Write what the gate needs beside the images: itself, its request, and a file for each volume.

    Args:
        folder: a `workspace`.
        program: the gate.
        most: size of a volume in bytes.
        seconds: for an image.
        images: name and format of each.
    """
    request = json.dumps({"most": most, "seconds": seconds, "images": images})
    for name, text in (("gate.py", program), ("request.json", request)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
    for name, _ in images:
        target = folder / "out" / name
        target.touch()
        target.chmod(0o666)
        os.truncate(target, most)


def asked(folder: Path, command: list[str], seconds: float) -> dict[str, object]:
    """Run the confined gate; return its answer, the largest memory of its unit in bytes, and its errors.

    Args:
        folder: a `workspace` with the images.
        command: of `testbed.plan.host_config.image_import`, with `HERE` for the folder.
        seconds: until it must have ended.
    """
    words = [word.replace(HERE, str(folder)) for word in command]
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as told:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=told,
            check=False,
            timeout=seconds + _SLACK,
        )
        text, errors = (_start(file.fileno()) for file in (printed, told))
    found = _PEAK.search(errors)
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    return {
        "answer": answer,
        "status": done.returncode,
        "memory": int(float(found[1]) * _UNITS[found[2]]) if found else 0,
        "errors": errors[-400:],
    }


def _start(file: int) -> str:
    return os.pread(file, _ANSWER, 0).decode(errors="replace")


def volume(request: dict[str, object], image: bytes, key: bytes) -> dict[str, object]:
    """Import one image into a new volume.

    Args:
        request: ``gate``, the program; ``command``, that runs it; ``form``; ``size`` of the volume;
            ``seconds``; ``encrypt``, the command that makes the volume from raw octets, with `HERE`.
        image: its octets.
        key: of the volume.

    Returns:
        ``refused``, the reason, or empty.
    """
    size, seconds = int(str(request["size"])), float(str(request["seconds"]))
    command, encrypt = request["command"], request["encrypt"]
    assert isinstance(command, list)
    assert isinstance(encrypt, list)
    with workspace(size + len(image)) as folder:
        (folder / "in" / "image").write_bytes(image)
        (folder / "in" / "image").chmod(0o644)
        lay(folder, str(request["gate"]), size, seconds, [("image", str(request["form"]))])
        told = asked(folder, command, seconds)
        answer = told["answer"]
        one = answer.get("image") if isinstance(answer, dict) else None
        if not isinstance(one, dict) or told["status"]:
            return {"refused": f"the gate has no answer (status {told['status']})"}
        if one.get("refused") != "":
            return {"refused": str(one.get("refused"))[:500]}
        words = [word.replace(HERE, str(folder)) for word in encrypt]
        for left in reversed(range(_TRIES)):
            done = subprocess.run(words, input=key, capture_output=True, check=False)
            if done.returncode and not left:
                return {"refused": "", "failed": done.stderr[-400:].decode(errors="replace")}
            if not done.returncode:
                break
    return {"refused": ""}
