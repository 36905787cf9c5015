"""The gate of imported images: reads each image, and writes the disk in it as raw octets (STO-03).

It runs confined on a node (`testbed.plan.host_config.image_import`), without a key, network or file of the
node. Each image has a process of its own, with a time limit; qemu-img is given the format, and that no file
lies below the image.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

from testbed.payload.images.image_header import QCOW2, RefusedError, opened, virtual_size

FOLDER = "/import"
_PROGRAM = "/usr/bin/qemu-img"
_FAILED = 3


def source(path: str, form: str) -> str:
    """Return the image as qemu-img opens it: with its format, and nothing below it."""
    image: dict[str, object] = {
        "driver": form,
        "file": {"driver": "file", "filename": path, "locking": "off"},
    }
    if form == QCOW2:
        image["backing"] = None
    return f"json:{json.dumps(image)}"


def words(path: str, form: str, target: str) -> list[str]:
    """Return the command that writes the disk in an image to a file of the volume's size."""
    return [_PROGRAM, "convert", "-q", "-n", "-O", "raw", source(path, form), target]


def imported(path: str, form: str, target: str, most: int) -> None:
    """Read an image, and replace this process by its conversion.

    Raises:
        RefusedError: the image is refused.
    """
    file = opened(path)
    try:
        virtual_size(file, form, most)
    finally:
        os.close(file)
    os.execv(_PROGRAM, words(path, form, target))


def _child(path: str, form: str, target: str, most: int, answer: int) -> None:
    """Import one image; a reason for a refusal goes to a pipe. It does not return."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.set_inheritable(answer, False)
        imported(path, form, target, most)
    except RefusedError as error:
        os.write(answer, str(error).encode()[:500])
    except BaseException as error:  # noqa: BLE001 - what else goes wrong with an image is its own fault
        os.write(answer, f"the gate failed: {type(error).__name__}".encode()[:500])
    os._exit(_FAILED)


def one(path: str, form: str, target: str, most: int, seconds: float) -> dict[str, object]:
    """Import one image in a process of its own.

    Returns:
        ``refused``, the reason, or empty; ``seconds`` of CPU time, ``wall`` seconds, and ``memory``, the
        largest resident set in KiB.
    """
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reading)
        _child(path, form, target, most, writing)
    os.close(writing)
    handle = os.pidfd_open(child)
    late = not select.select([handle], [], [], seconds)[0]
    if late:
        os.kill(child, signal.SIGKILL)
    os.close(handle)
    _, status, usage = os.wait4(child, 0)
    reason = os.read(reading, 500).decode(errors="replace")
    os.close(reading)
    if late:
        reason = f"its import did not end within {seconds:.0f} s"
    elif os.WIFSIGNALED(status):
        reason = f"its import was ended by signal {os.WTERMSIG(status)}"
    elif status and not reason:
        reason = f"qemu-img cannot convert it (status {os.WEXITSTATUS(status)})"
    return {
        "refused": reason,
        "seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "wall": round(time.monotonic() - started, 3),
        "memory": usage.ru_maxrss,
    }


def main() -> None:
    """Import all images of the request, and print what became of each."""
    with open(f"{FOLDER}/request.json", encoding="utf-8") as file:
        request = json.load(file)
    found = {
        name: one(f"{FOLDER}/in/{name}", form, f"{FOLDER}/out/{name}", request["most"], request["seconds"])
        for name, form in request["images"]
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
