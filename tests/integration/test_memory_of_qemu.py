"""Real QEMUs: the memory that one of them saves is loaded by another one, and refused by one of another
shape.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.drivers.hypervisor.qmp import Monitor
from testbed.errors import ProvisioningError

pytestmark = pytest.mark.integration
QEMU = shutil.which("qemu-system-x86_64")
SHAPE = (
    "-M",
    "q35",
    "-accel",
    "tcg",
    "-m",
    "64",
    "-nodefaults",
    "-display",
    "none",
    "-S",
    "-device",
    "virtio-rng-pci",
)


class Qmp:
    """A connection to a QEMU's monitor that can pass descriptors on."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self('{"execute": "qmp_capabilities"}', ())

    def __call__(self, request: str, files: Sequence[int]) -> str:
        try:
            socket.send_fds(self._socket, [request.encode()], list(files))
            while line := self._lines.readline():
                if "event" not in json.loads(line):
                    return line
        except ConnectionError:
            pass
        raise ProvisioningError("QEMU has ended", fact="its monitor is closed", remedy="none")

    def status(self) -> str:
        return str(json.loads(self('{"execute": "query-status"}', ()))["return"]["status"])


@contextmanager
def _qemu(path: Path, *words: str) -> Iterator[Qmp]:
    assert QEMU is not None
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    argv = [
        QEMU,
        "-chardev",
        f"socket,id=m,fd={listener.fileno()},server=on,wait=off",
        "-mon",
        "chardev=m,mode=control",
        *words,
    ]
    process = subprocess.Popen(argv, pass_fds=[listener.fileno()], stderr=subprocess.PIPE)
    try:
        yield Qmp(path)
    finally:
        process.kill()
        process.communicate()
        listener.close()


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is missing")
    file = tmp_path / "memory"
    with _qemu(tmp_path / "a", *SHAPE) as qmp:
        for command in ("cont", "stop"):
            qmp(json.dumps({"execute": command}), ())
        Monitor(qmp).save_memory(file, 60)
    return file


def test_memory_that_one_saves_another_goes_on_with(memory: Path, tmp_path: Path) -> None:
    assert memory.stat().st_size > 2**16
    with _qemu(
        tmp_path / "b", *SHAPE, "-uuid", "6a0ca754-95a5-4bd9-93b4-22c30d082b6b", "-incoming", "defer"
    ) as qmp:
        assert qmp.status() == "inmigrate"
        Monitor(qmp).load_memory(memory, 60)
        assert qmp.status() == "paused"
        qmp('{"execute": "cont"}', ())
        assert qmp.status() == "running"


@pytest.mark.parametrize("change", ["memory", "machine", "file"])
def test_one_of_another_shape_refuses_it(memory: Path, tmp_path: Path, change: str) -> None:
    shape = [
        {"memory": {"64": "128"}, "machine": {"q35": "pc-q35-6.0"}}.get(change, {}).get(word, word)
        for word in SHAPE
    ]
    if change == "file":
        memory.write_bytes(memory.read_bytes()[: memory.stat().st_size // 2])
    with _qemu(tmp_path / "b", *shape, "-incoming", "defer") as qmp, pytest.raises(ProvisioningError):
        Monitor(qmp).load_memory(memory, 60)
