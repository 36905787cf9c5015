"""Keys of encrypted volumes, one for each tenant on each node (STO-06).

They are made here, kept in the lab's private folder, mode 0600, and sent to a node over its session. A key is
256 random bits in hexadecimal digits, since QEMU takes the passphrase of a LUKS container as text.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from pathlib import Path

from testbed.drivers.host.private_files import OWNER, make_folder, write_secret
from testbed.errors import ProvisioningError

_OCTETS = 32
_FORM = re.compile(rb"[0-9a-f]{64}")
_FINGERPRINT = 16  # hexadecimal digits


class VolumeKeys:
    """The keys of the volumes of one lab.

    Args:
        folder: the lab's private folder.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def key(self, node: str, tenant: str) -> bytes:
        """Return the key of a tenant's volumes on a node; it is made on first use.

        Raises:
            ProvisioningError: the file holds something else.

        """
        path = self._path(node, tenant)
        with self._lock:
            try:
                found = _read(path)
            except FileNotFoundError:
                found = secrets.token_hex(_OCTETS).encode()
                make_folder(self._folder, OWNER)
                write_secret(path, found)
        if not _FORM.fullmatch(found):
            raise ProvisioningError(
                f"the key of {tenant}'s volumes on {node} cannot be used",
                fact=f"{path} holds {len(found)} octets that are no key",
                remedy="put the file back from a copy, or remove the volumes and it",
            )
        return found

    def forget(self, node: str, tenant: str) -> None:
        """Overwrite and remove a key: volumes that were encrypted with it stay unreadable (SP 800-88)."""
        path = self._path(node, tenant)
        with self._lock:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            try:
                os.write(descriptor, bytes(2 * _OCTETS))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            path.unlink()

    def _path(self, node: str, tenant: str) -> Path:
        return self._folder / f"volumes.{node}.{tenant}.key"  # no name has a dot


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 2 * _OCTETS + 1)
    finally:
        os.close(descriptor)


def fingerprint(key: bytes) -> str:
    """Return a name for a key, from which it cannot be found: it has 256 random bits."""
    return hashlib.sha256(b"testbed volume key\0" + key).hexdigest()[:_FINGERPRINT]
