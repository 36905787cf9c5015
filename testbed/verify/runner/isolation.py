"""Keeps the environment from changing what is checked: variables, settings of pytest, other packages.

The checks of the tool's own folder run, all of them, whatever pytest is told by files and variables around
us. What cannot be undone once Python runs is refused: asserts that were left out, code that ran before ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from testbed.errors import MachineError

_BEFORE_US = ("sitecustomize", "usercustomize")  # what Python starts by itself, site(7)


def require_plain_python() -> None:
    """Return if this Python runs every assert, and started no code of a folder that the environment names.

    Raises:
        MachineError: it does not.

    """
    if sys.flags.optimize:
        fact = f"it runs with optimisation {sys.flags.optimize} (PYTHONOPTIMIZE, or -O)"
        raise MachineError(
            "this Python leaves asserts out, so that no check could fail",
            fact=fact,
            remedy="unset PYTHONOPTIMIZE, omit -O",
        )
    found = _started_before_us()
    if found:
        what = "the environment makes Python start code before ours, which may change what checks do"
        raise MachineError(
            what,
            fact=", ".join(found)[:500],
            remedy="unset PYTHONPATH and PYTHONUSERBASE, or remove that file",
        )


def _started_before_us() -> list[str]:
    named = [] if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "").split(os.pathsep)
    found = [
        str(path)
        for folder in named
        if folder
        for name in _BEFORE_US
        for path in sorted(Path(folder).glob(f"{name}*"))
    ]
    own = [
        Path(folder).resolve()
        for folder in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, "/etc"}
    ]
    for name in _BEFORE_US:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and not any(Path(file).resolve().is_relative_to(folder) for folder in own):
            found.append(str(file))
    return sorted(set(found))


@contextmanager
def without_settings_of_pytest() -> Iterator[None]:
    """Hide every variable that pytest obeys while a block runs, and let it load no installed plug-in."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("PYTEST"):
            del os.environ[name]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("PYTEST")]:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if name.startswith("PYTEST")})


def arguments(folder: Path) -> list[str]:
    """Return what pytest is told in order to run the checks of a folder by no settings but these."""
    return [
        str(folder), "-c", os.devnull, f"--rootdir={folder}", f"--confcutdir={folder}", "--noconftest",
        "--import-mode=importlib", "--assert=rewrite", "-p", "no:cacheprovider", "-p", "no:terminal",
    ]  # fmt: skip


def own_package(folder: Path) -> None:
    """Import the package that a folder is, so that its modules import one another and no namesakes.

    A folder without ``__init__.py`` is no package, and nothing is done.

    Raises:
        MachineError: another package of that name has been imported.

    """
    name, file = folder.name, folder / "__init__.py"
    if not file.is_file():
        return
    present = sys.modules.get(name)
    if present is not None:
        places = [str(Path(place).resolve()) for place in getattr(present, "__path__", [])]
        if places != [str(folder.resolve())]:
            fact = f"the package {name} was imported from {places or 'no folder'}, not from {folder}"
            raise MachineError(
                "other checks than the tool's own would run",
                fact=fact,
                remedy="remove that package, unset PYTHONPATH",
            )
        return
    spec = spec_from_file_location(name, file, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise MachineError(
            "the checks cannot be loaded", fact=f"{file} is no module", remedy="install the package anew"
        )
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
