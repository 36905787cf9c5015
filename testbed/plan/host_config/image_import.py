"""How a node imports an image: the confinement of the gate that reads it (STO-03, docs/decisions/0042).

The gate runs as a transient unit of systemd. Its file system is empty but for programs and libraries, the
image and one file of the volume's size; it has an account of its own, no network, no capability and limits.
"""

from __future__ import annotations

from testbed.topology_file.quantities import MIB

PREFIX = "testbed-import-"  # of the unit's name; systemd reads drop-ins from a folder of this name
INSIDE = "/import"  # the folder of an import, as the gate sees it
_PYTHON = "/usr/bin/python3"
# Drop-ins that would change the unit of the gate, where systemd looks for them (systemd.unit(5)).
_FOLDERS = " ".join(
    f"{place}/systemd/system{kind}" for place in ("/etc", "/run") for kind in ("", ".control")
)
LIST = (
    f"find {_FOLDERS} /usr/lib/systemd/system -maxdepth 1 "
    "'(' -name 'testbed-.service.d' -o -name 'testbed-import-*.d' -o -path '/[er]*/service.d' ')' "
    "2>/dev/null | sort"
)
REMOVE = f'{LIST} | while read -r folder; do rm -rf -- "$folder"; done; systemctl daemon-reload'
ADDRESS_SPACE = 1024 * MIB
WORKING = 192 * MIB  # memory of the gate beside the pages of the volume
DESCRIPTORS, TASKS = 64, 96
_CALLS = (
    "@system-service",
    "~@privileged @resources @network-io @keyring @mount @debug @cpu-emulation @obsolete",
)


def properties(folder: str, size: int, seconds: int) -> tuple[str, ...]:
    """Return the properties of the gate's unit.

    ``DynamicUser=`` makes the root folder read-only, which overrides a ``TemporaryFileSystem=/``. So the root
    is an empty folder of the import.

    Args:
        folder: the folder of the import on the node, with the gate, its request, images and volumes.
        size: of a volume, in bytes; no file may grow beyond it.
        seconds: of CPU time for a process. The unit ends after twice that time.
    """
    return (
        "DynamicUser=yes", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "AmbientCapabilities=",
        f"RootDirectory={folder}/root", "MountAPIVFS=yes", "PrivateDevices=yes", "PrivateNetwork=yes",
        "PrivateIPC=yes", "ProtectProc=invisible",
        "ProcSubset=pid", "ProtectControlGroups=yes", "ProtectKernelTunables=yes", "ProtectKernelLogs=yes",
        "ProtectClock=yes", "ProtectHostname=yes",
        "BindReadOnlyPaths=/usr/bin /usr/lib /usr/lib:/lib /usr/lib64:/lib64",
        f"BindReadOnlyPaths={folder}/gate.py:{INSIDE}/gate.py {folder}/request.json:{INSIDE}/request.json "
        f"{folder}/in:{INSIDE}/in",
        f"BindPaths={folder}/out:{INSIDE}/out",
        "InaccessiblePaths=-+/usr/lib/x86_64-linux-gnu/qemu",
        "RestrictNamespaces=yes", "RestrictSUIDSGID=yes",
        "RestrictRealtime=yes", "LockPersonality=yes", "MemoryDenyWriteExecute=yes",
        "SystemCallArchitectures=native", "SystemCallErrorNumber=EPERM",
        *(f"SystemCallFilter={calls}" for calls in _CALLS),
        f"LimitAS={ADDRESS_SPACE}", f"LimitCPU={seconds}", f"LimitFSIZE={size}",
        f"LimitNOFILE={DESCRIPTORS}", "LimitCORE=0", f"TasksMax={TASKS}",
        f"MemoryMax={size + WORKING}", "MemorySwapMax=0", f"RuntimeMaxSec={2 * seconds}", "UMask=0077",
        "KeyringMode=private",
    )  # fmt: skip


def command(name: str, folder: str, size: int, seconds: int) -> list[str]:
    """Return the command that runs the gate over a folder and prints its answer; see `properties`.

    Args:
        name: of the import, unique on its node.
        folder: see `properties`.
        size: of a volume, in bytes.
        seconds: of CPU time for a process.
    """
    given = [f"--property={text}" for text in properties(folder, size, seconds)]
    start = ["systemd-run", "--pipe", "--wait", "--collect", f"--unit={PREFIX}{name}", *given]
    return [*start, _PYTHON, "-IS", f"{INSIDE}/gate.py"]
