"""A program for a machine that imports modules of ``testbed/payload``: everything as one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

_FOLDER = Path(__file__).parents[2] / "payload"
_PACKAGE = "testbed.payload"
_LOADER = """\
import sys, types
for name, text in {sources!r}:
    module = sys.modules[name] = types.ModuleType(name)
    above, _, last = name.rpartition(".")
    if above:
        setattr(sys.modules[above], last, module)
    exec(compile(text, name, "exec"), module.__dict__)
exec(compile({program!r}, "<program>", "exec"), {{"__name__": "__main__"}})
"""


def with_modules(program: str, names: Sequence[str]) -> str:
    """Return a program that makes modules before it runs another program, which imports them.

    Args:
        names: modules below `testbed.payload`, in an order in which each imports only earlier ones.
    """
    modules = {f"{_PACKAGE}.{name}": _FOLDER / f"{name.replace('.', '/')}.py" for name in names}
    packages = dict.fromkeys(above for module in modules for above in _packages(module))
    sources = [(name, "") for name in packages]
    sources += [(module, path.read_text()) for module, path in modules.items()]
    return _LOADER.format(sources=sources, program=program)


def _packages(module: str) -> list[str]:
    """Return the packages above a module, the outermost one first."""
    parts = module.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def import_gate(change: Callable[[str], str] = str) -> str:
    """Return the gate of imported images (STO-03) as one text.

    Args:
        change: of its main module; for a breach.
    """
    return with_modules(change((_FOLDER / "images/image_gate.py").read_text()), ["images.image_header"])
