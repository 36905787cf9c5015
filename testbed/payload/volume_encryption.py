"""Opens volumes of guests with several keys, and searches a node's files for keys and for a guest's canary.

It runs as root on a node: one file, standard library only. Keys are in its own text, which is read from
standard input, and go to qemu-io in the same way: they are on no command line and in no file.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT = 60.0  # seconds for a program
_CHUNK = 1 << 20
_DUMPED = re.compile(r"^[0-9a-f]{8}:  ((?:[0-9a-f]{2} )+)", re.MULTILINE)  # of qemu-io's "read -v"
_MESSAGE = 200  # characters

Facts = dict[str, object]


def collect(request: dict[str, object]) -> Facts:
    """Return what each key opens, and the files that hold one of some texts.

    A file with a text of the program's own is made in each place of the search, and must be found there.

    Args:
        request: ``volumes``, path and keys by name of each volume; ``head``, octets to read from each;
            ``texts``, octets in hexadecimal by name; ``places``, folders to search; and ``lines``, whether
            command lines of processes are searched as well.
    """
    texts = {name: bytes.fromhex(text) for name, text in request["texts"].items()}  # type: ignore[attr-defined]
    opened = {
        path: {name: _read(path, key, int(str(request["head"]))) for name, key in keys.items()}
        for path, keys in request["volumes"]  # type: ignore[attr-defined]
    }
    own = secrets.token_bytes(32)
    controls = [f"{place}/.control-{secrets.token_hex(8)}" for place in request["places"]]  # type: ignore[attr-defined]
    try:
        for path in controls:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(own)
                os.fsync(file.fileno())
        found = {"": set(), **{name: set() for name in texts}}  # type: dict[str, set[str]]
        for place in request["places"]:  # type: ignore[attr-defined]
            for path in _files(place):
                for name in _holds(path, {"": own, **texts}):
                    found[name].add(path)
    finally:
        for path in controls:
            if os.path.exists(path):
                os.unlink(path)
    for path in _command_lines():
        for name in _holds(path, texts):
            found[name].add(path)
    return {
        "opened": opened,
        "found": {name: sorted(paths) for name, paths in found.items()},
        "controls": controls,
    }


def _read(path: str, key: str, size: int) -> list[object]:
    """Return whether a key opens a container, with the first octets of its data, or the message."""
    options = f"driver=luks,key-secret=key,file.driver=file,file.filename={path}"
    done = subprocess.run(
        ("qemu-io", "-r", "-U", "--object", "secret,id=key,file=/dev/stdin", "--image-opts", options,
         "-c", f"read -v 0 {size}"),
        input=key.encode(), capture_output=True, check=False, timeout=_TIMEOUT,
    )  # fmt: skip
    text = done.stdout.decode(errors="replace")
    octets = "".join(_DUMPED.findall(text)).replace(" ", "")
    message = (done.stderr.decode(errors="replace") or text)[:_MESSAGE]
    return [done.returncode == 0, octets] if octets else [False, message]


def _files(place: str) -> Iterator[str]:
    """Yield the regular files of one file system below a folder."""
    device = os.stat(place).st_dev
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if os.lstat(f"{folder}/{name}").st_dev == device]
        for name in names:
            path = f"{folder}/{name}"
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield path
            except FileNotFoundError:
                continue


def _command_lines() -> Iterator[str]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield from (f"/proc/{name}/cmdline", f"/proc/{name}/environ")


def _holds(path: str, texts: dict[str, bytes]) -> set[str]:
    """Return the names of the texts that a file holds; holes are skipped."""
    longest = max((len(text) for text in texts.values()), default=1)
    found: set[str] = set()
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0) as file:
            before = b""
            while True:
                piece = file.read(_CHUNK)
                if not piece:
                    return found
                if piece.strip(b"\0"):
                    whole = before + piece
                    found |= {name for name, text in texts.items() if text in whole}
                before = piece[-longest:]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return found
    except OSError as error:
        if error.errno in (5, 22):  # EIO, EINVAL: files of the kernel below /run
            return found
        raise
