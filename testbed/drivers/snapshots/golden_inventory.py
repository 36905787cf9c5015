"""The inventory of a machine without identity, read in the instant before its memory is saved.

The machine has no network and no login then. Its firmware hands over a credential of systemd-tmpfiles, which
writes a program into the folder of those that ``adopt.py`` runs before it lets the memory be saved. The
program removes itself and the credential, reads the machine, and prints the result on the serial console.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from testbed.drivers.host.inventory_program import UNPACK, compose
from testbed.errors import ProvisioningError
from testbed.inventory.records import Inventory, unpack

CREDENTIAL = "opt/io.systemd.credentials/tmpfiles.extra"
FILE = "inventory"  # of a saved state
_PROGRAM = "/usr/lib/testbed/before-saving.d/zz-inventory"
_LINE = "testbed: inventory "
_WIDTH = 4096
_READER = """#!/usr/bin/python3 -ISB
import base64, glob, os, shutil, subprocess
os.unlink({program!r})
for place in ("/run/credentials/@system", *glob.glob("/run/credentials/systemd-tmpfiles-*.service")):
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)
    shutil.rmtree(place, ignore_errors=True)
argv = ["python3", "-I", "-S", "-B", "-c", {unpack!r}]
done = subprocess.run(argv, input=base64.b64decode({source!r}), capture_output=True, check=True)
text = base64.b64encode(done.stdout).decode()
with open("/dev/ttyS0", "w") as console:
    for start in range(0, len(text), {width}):
        console.write({line!r} + text[start : start + {width}] + "\\n")
"""


def digest_key(state: str) -> str:
    """Return the key for digests of private files, which a state and readings to compare with it share.

    Args:
        state: key of the saved state.

    """
    return hashlib.sha256(f"inventory of {state}".encode()).hexdigest()


def program_digest() -> str:
    """Return a digest of everything that runs, since readings of different programs cannot be compared."""
    return hashlib.sha256(credential("").encode()).hexdigest()[:16]


def credential(key: str) -> str:
    """Return lines of tmpfiles.d that let a machine read itself before its memory is saved.

    Args:
        key: for digests of private files (hexadecimal).

    """
    source = base64.b64encode(compose({"key": key, "whole": True})).decode()
    reader = _READER.format(program=_PROGRAM, unpack=UNPACK, source=source, width=_WIDTH, line=_LINE)
    return f"f+~ {_PROGRAM} 0700 root root - {base64.b64encode(reader.encode()).decode()}\n"


def take(console: Path) -> bytes:
    """Return the packed inventory that a machine has printed, and take it out of the console's file.

    Raises:
        ProvisioningError: it has printed none, or it is damaged.

    """
    lines = console.read_bytes().split(b"\n")
    ours = [line.partition(_LINE.encode())[2] for line in lines if _LINE.encode() in line]
    console.write_bytes(b"\n".join(line for line in lines if _LINE.encode() not in line))
    try:
        packed = base64.b64decode(re.sub(rb"\s", b"", b"".join(ours)), validate=True)
        unpack(packed)
    except (ValueError, RecursionError) as error:
        raise ProvisioningError(
            "a machine without identity cannot be read",
            fact=f"{len(ours)} lines of its console hold no inventory: {error}",
            remedy="use --cold to do without saved memory",
        ) from error
    return packed


def load(folder: Path) -> Inventory:
    """Return the inventory of a saved state.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.

    """
    return unpack((folder / FILE).read_bytes())
