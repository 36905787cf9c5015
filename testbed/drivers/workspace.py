"""The folder of a lab: only what the world cannot tell, such as keys and logs (D9), and the lock."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.run_order import place
from testbed.errors import LockedError, UsageError


def state_root() -> Path:
    """Return the folder that holds every lab's folder (TESTBED_STATE_DIR)."""
    default = "/var/lib/testbed" if os.geteuid() == 0 else Path.home() / ".local/state/testbed"
    return Path(os.environ.get("TESTBED_STATE_DIR", default)).absolute()


def cache_root() -> Path:
    """Return the folder that holds the images (TESTBED_CACHE_DIR)."""
    default = "/var/cache/testbed" if os.geteuid() == 0 else Path.home() / ".cache/testbed"
    return Path(os.environ.get("TESTBED_CACHE_DIR", default)).absolute()


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths of one lab."""

    root: Path
    lab: str

    @property
    def folder(self) -> Path:
        """The lab's folder. Short: sockets below it must stay under 108 bytes."""
        return self.root / self.lab

    @property
    def topology(self) -> Path:
        """Copy of the topology file that was applied last."""
        return self.folder / "topology.yaml"

    @property
    def pki(self) -> Path:
        """Folder of the lab's authorities."""
        return self.folder / "pki"

    @property
    def libvirt(self) -> Path:
        """Root of the embedded libvirt."""
        return self.folder / "v"

    @property
    def ssh_config(self) -> Path:
        """OpenSSH client configuration for the lab's machines."""
        return self.folder / "ssh/config"

    @property
    def runs(self) -> Path:
        """Folder of the check runs."""
        return self.folder / "runs"

    @property
    def connection(self) -> str:
        """The libvirt URI that runs the lab's machines; the empty string stands for the built-in libvirt."""
        file = self.folder / "connect"
        return file.read_text() if file.exists() else ""

    def connect(self, uri: str) -> None:
        """Remember the libvirt URI that runs the lab's machines."""
        (self.folder / "connect").write_text(uri)

    @property
    def log(self) -> Path:
        """Messages of the lab's holder."""
        return self.folder / "holder.log"

    def machine(self, name: str) -> Path:
        """Folder of one machine: overlays, identity, console."""
        return self.folder / "m" / name

    def create(self) -> None:
        """Make the folders that every lab has; harmless when they are there."""
        for folder in (self.folder, self.folder / "m", self.libvirt, self.folder / "ssh", self.runs):
            self.make(folder)

    def make(self, folder: Path) -> None:
        """Make a folder that the emulators' account may pass through, but not list."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)

    def remove(self) -> None:
        """Delete everything but the reports of check runs."""
        for path in self.folder.iterdir():
            if path != self.runs and path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not any(self.runs.iterdir()) if self.runs.exists() else True:
            shutil.rmtree(self.folder)

    def latest_run(self) -> Path:
        """Return the folder of the latest run, whatever the clock said when it ran.

        Raises:
            UsageError: there is none.

        """
        found = sorted((path.parent for path in self.runs.glob("*/result.json")), key=place)
        if not found:
            fact = f"{self.runs} holds no result"
            raise UsageError(f"the lab {self.lab} has no check run", fact=fact, remedy=f"run `testbed check {self.lab}`")
        return found[-1]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes off this lab.

        Raises:
            LockedError: another process works on it; the error names it.

        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                raise LockedError(
                    f"the lab {self.lab} is in use",
                    fact=f"locked by {stream.read(500).strip() or 'a process that has not named itself yet'}",
                    remedy="wait until it ends, or stop it; the lab then resumes with the next `testbed up`",
                ) from error
            stream.truncate(0)
            stream.write(f"process {os.getpid()}: {' '.join(sys.argv)[:400]}\n")
            stream.flush()
            yield


def labs(root: Path) -> list[str]:
    """Return the labs that have a folder with a topology."""
    return sorted(path.parent.name for path in root.glob("*/topology.yaml"))
