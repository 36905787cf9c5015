"""Lists the vsock sockets of a node. It runs there as root, and does not load the kernel's vsock."""

from __future__ import annotations

import socket
import subprocess

_ANY = 0xFFFFFFFF
_TIMEOUT = 30.0  # seconds
_LINES, _LINE = 200, 200


def collect(_: object) -> dict[str, object]:
    """Return the protocols of the kernel, and each vsock socket but one of this program's own.

    Without the protocol AF_VSOCK no such socket exists. With it, the program listens itself, so that a list
    without its port is known to be incomplete.
    """
    with open("/proc/net/protocols", encoding="utf-8") as file:
        protocols = [row.split()[0] for row in file.read().splitlines()[1:]]
    if "AF_VSOCK" not in protocols:
        return {"protocols": protocols, "port": 0, "sockets": []}
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as own:
        own.bind((_ANY, _ANY))
        own.listen()
        # Machines load it for no request (ACC-10); ss(8) needs it.
        subprocess.run(["modprobe", "-q", "vsock_diag"], check=False, timeout=_TIMEOUT)
        done = subprocess.run(
            ["ss", "--vsock", "-anH"], capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
        port = own.getsockname()[1]
    sockets = [line[:_LINE] for line in done.stdout.splitlines()[:_LINES]]
    return {"protocols": protocols, "port": port, "sockets": sockets}
