"""AppArmor's policy as the kernel holds it, with the kernel's own digest of each profile."""

from __future__ import annotations

import os

from testbed.payload.inventory.base.collect import Records, Unread, setting

POLICY = "/sys/kernel/security/apparmor/policy"
_SHOWN = ("name", "mode", "attach", "sha256", "sha1", "learning_count")
_RAW = ("sha256", "sha1", "abi", "compressed_size")
_ENABLED = "/sys/module/apparmor/parameters/enabled"


def collect(records: Records, policy: str = POLICY) -> None:
    """Record all profiles that are loaded."""
    if not os.path.isdir(policy):
        records.unread("profile", policy, "the kernel shows no policy")
        return
    _namespace(records, policy, "")


def _namespace(records: Records, folder: str, name: str) -> None:
    _profiles(records, f"{folder}/profiles", name)
    for entry in _entries(records, f"{folder}/namespaces"):
        records.add("profile namespace", f"{name}:{entry}")
        _namespace(records, f"{folder}/namespaces/{entry}", f"{name}:{entry}")


def _profiles(records: Records, folder: str, name: str) -> None:
    for entry in _entries(records, folder):
        own = f"{folder}/{entry}"
        present = set(_entries(records, own))
        told = {item: _line(f"{own}/{item}") for item in _SHOWN if item in present}
        raw = {f"raw {item}": _line(f"{own}/raw_{item}") for item in _RAW if f"raw_{item}" in present}
        title = told.pop("name", entry.rpartition(".")[0])
        records.add("profile", f"{name} {title}".strip(), {**told, **raw})
        if "profiles" in present:
            _profiles(records, f"{own}/profiles", f"{name} {title} //".strip())


def _entries(records: Records, folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []  # it has no such folder, or has gone meanwhile
    except OSError as error:
        records.unread("profile", folder, error.strerror)
        return []


def _line(path: str) -> str:
    try:
        return setting(path).strip()
    except Unread as error:
        return f"unread: {error}"
