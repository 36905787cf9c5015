"""The program that reads a whole machine: the modules of ``payload/inventory`` as one text."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

from testbed.drivers.host.payload_program import with_modules

# In an order in which each imports only earlier ones.
MODULES = (
    "base.collect",
    "base.programs",
    "host.processes",
    "host.namespaces",
    "host.files",
    "host.kernel",
    "host.bpf",
    "host.kernel_code",
    "host.bus",
    "host.manager",
    "host.units",
    "host.accounts",
    "host.confinement",
    "host.guests",
    "network.sockets",
    "network.netlink",
    "network.iproute",
    "network.filters",
    "network.links",
    "network.rpc",
    "network.databases",
    "network.switch",
    "main",
)
UNPACK = "import sys, zlib; exec(zlib.decompress(sys.stdin.buffer.read()))"
_PROGRAM = """import json
from testbed.payload.inventory.main import main
raise SystemExit(main(json.loads({request!r})))
"""


def compose(request: Mapping[str, object]) -> bytes:
    """Return the compressed program that reads a machine, with one request."""
    program = _PROGRAM.format(request=json.dumps(dict(request)))
    return zlib.compress(with_modules(program, [f"inventory.{name}" for name in MODULES]).encode())
