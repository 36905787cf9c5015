"""The program that reads a whole machine: the modules of ``payload/inventory`` as one text."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

_FOLDER = Path(__file__).parents[2] / "payload" / "inventory"
_PACKAGE = "testbed.payload.inventory"
# In an order in which each imports only earlier ones.
MODULES = (
    "base/collect",
    "base/programs",
    "host/processes",
    "host/namespaces",
    "host/files",
    "host/kernel",
    "host/bus",
    "host/manager",
    "host/units",
    "host/accounts",
    "host/confinement",
    "host/guests",
    "network/sockets",
    "network/netlink",
    "network/iproute",
    "network/filters",
    "network/links",
    "network/rpc",
    "network/databases",
    "network/switch",
    "main",
)
_PACKAGES = (
    "testbed",
    "testbed.payload",
    _PACKAGE,
    f"{_PACKAGE}.base",
    f"{_PACKAGE}.host",
    f"{_PACKAGE}.network",
)
UNPACK = "import sys, zlib; exec(zlib.decompress(sys.stdin.buffer.read()))"
_LOADER = """import json, sys, types
for name, text in json.loads({sources!r}):
    module = sys.modules[name] = types.ModuleType(name)
    above, _, last = name.rpartition(".")
    if above:
        setattr(sys.modules[above], last, module)
    exec(compile(text, name, "exec"), module.__dict__)
from {package}.main import main
raise SystemExit(main(json.loads({request!r})))
"""


def compose(request: Mapping[str, object]) -> bytes:
    """Return the compressed program that reads a machine, with one request."""
    packages = [[name, ""] for name in _PACKAGES]
    sources = packages + [
        [f"{_PACKAGE}.{name.replace('/', '.')}", (_FOLDER / f"{name}.py").read_text()] for name in MODULES
    ]
    program = _LOADER.format(package=_PACKAGE, sources=json.dumps(sources), request=json.dumps(dict(request)))
    return zlib.compress(program.encode())
