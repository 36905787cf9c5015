"""Reads, as root of a guest, which devices it has, what its firmware says, and where vsock leads.

It runs in guests: one file, standard library only, and few imports, since these take seconds in a nested
guest. The kernel's modules are loaded before. Everything that it returns is bounded.
"""

from __future__ import annotations

import binascii
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_TABLE = 12288  # octets of a table or blob that are returned
_ENTRIES = 128  # files of fw_cfg that are returned
# Octets of such a file of QEMU's, and of one that was given to it. Each octet costs a nested exit. QEMU's own
# files are constants, programs, or tables that are read from memory as well.
_BUILTIN, _GIVEN = 64, 4096
_FW_CFG = "/sys/firmware/qemu_fw_cfg/by_key"
_AF_VSOCK, _ANY, _LOCAL, _HOST = 40, 0xFFFFFFFF, 1, 2
_WAIT = 0.5  # seconds for a connection


def collect(request: dict[str, list[int]]) -> dict[str, object]:
    """Return PCI and virtio devices, ports, SMBIOS, ACPI, fw_cfg, and attempts to connect over vsock.

    Args:
        request: ``contexts`` and ``ports`` of vsock to connect to; no attempts if there are none.
    """
    pci, virtio = "/sys/bus/pci/devices", "/sys/bus/virtio/devices"
    tables = {
        name: _blob(f"/sys/firmware/acpi/tables/{name}")
        for name in _listed("/sys/firmware/acpi/tables")
        if os.path.isfile(f"/sys/firmware/acpi/tables/{name}")
    }
    return {
        "pci": [
            [
                name.removeprefix("0000:"),
                _hexadecimal(f"{pci}/{name}/vendor"),
                _hexadecimal(f"{pci}/{name}/device"),
            ]
            for name in _listed(pci)
        ],
        "virtio": [int(_text(f"{virtio}/{name}/device"), 16) for name in _listed(virtio)],
        "ports": [
            _text(f"/sys/class/virtio-ports/{name}/name") for name in _listed("/sys/class/virtio-ports")
        ],
        "smbios": _blob("/sys/firmware/dmi/tables/DMI"),
        "acpi": tables,
        "fw_cfg": _firmware_configuration(),
        "command_line": _blob("/proc/cmdline"),
        "vsock": _vsock(request["contexts"], request["ports"]) if request["ports"] else {},
    }


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(200).strip()


def _hexadecimal(path: str) -> str:
    return _text(path).removeprefix("0x")


def _text_of(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _blob(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return _text_of(file.read(_TABLE))
    except OSError:
        return ""


def _firmware_configuration() -> dict[str, str]:
    """Return the beginning of every file of QEMU's fw_cfg device, by name."""
    found = {}
    for key in _listed(_FW_CFG)[:_ENTRIES]:
        name = _text(f"{_FW_CFG}/{key}/name")
        # One read only: to skip what was read before, the driver reads each octet of it alone.
        with open(f"{_FW_CFG}/{key}/raw", "rb", buffering=0) as file:
            data = file.read(_GIVEN if name.startswith("opt/") else _BUILTIN)
        found[name] = _text_of(data)
    return found


def _vsock(contexts: list[int], ports: list[int]) -> dict[str, object]:
    """Return how connections over vsock end, by outcome, and which of the guest's own it has heard.

    Without a device, a kernel with the loopback transport sends CID 2 to the guest itself, as it does CID 1
    (Linux, net/vmw_vsock/af_vsock.c). So the guest listens at each port: a connection that comes back to it
    has not left it.
    """
    import socket  # noqa: PLC0415 - this takes a nested guest a second

    listeners: dict[int, socket.socket] = {}
    outcomes: dict[str, list[list[int]]] = {}
    try:
        for port in ports:
            listeners[port] = socket.socket(_AF_VSOCK, socket.SOCK_STREAM)
            listeners[port].bind((_ANY, port))
            listeners[port].listen()
            listeners[port].setblocking(False)
    except OSError as error:
        for listener in listeners.values():
            listener.close()
        return {"refused": _named(error)}
    for context in (_LOCAL, *contexts):
        for port in ports:
            client = socket.socket(_AF_VSOCK, socket.SOCK_STREAM)
            outcomes.setdefault(_connected(client, (context, port), listeners[port]), []).append(
                [context, port]
            )
    for listener in listeners.values():
        listener.close()
    return {"outcomes": outcomes}


def _connected(client: socket.socket, place: tuple[int, int], listener: socket.socket) -> str:
    """Return the outcome of a connection: "own" if it came back, "reached", or an error."""
    with client:
        client.settimeout(_WAIT)
        try:
            client.connect(place)
        except OSError as error:
            return "timeout" if isinstance(error, TimeoutError) else _named(error)
        mine = client.getsockname()[1]
        try:
            while True:  # connections of earlier attempts may be in the queue
                accepted, peer = listener.accept()
                accepted.close()
                if peer[1] == mine:
                    return "own"
        except OSError:
            return "reached"


def _named(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")
