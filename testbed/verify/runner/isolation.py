"""Keeps the environment from changing the checks: variables, settings of pytest, packages.

The checks of the tool's own folder run, all of them, whatever files and variables around us configure for
pytest. Influences that cannot be undone once Python runs are refused: removed asserts, and code that ran
before ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from testbed.errors import MachineError

_BEFORE_US = (
    "sitecustomize",
    "usercustomize",
)  # modules that Python imports by itself at its start (Python's documentation of `site`)


def require_plain_python() -> None:
    """Require that this Python runs every assert, and started no code named by the environment.

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
    """Hide pytest's environment variables during the block, and disable installed plug-ins."""
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
    """Return the arguments with which pytest runs a folder's checks, free of other settings."""
    return [
        str(folder), "-c", os.devnull, f"--rootdir={folder}", f"--confcutdir={folder}", "--noconftest",
        "--import-mode=importlib", "--assert=rewrite", "-p", "no:cacheprovider", "-p", "no:terminal",
    ]  # fmt: skip


def own_package(folder: Path) -> None:
    """Import a folder as a package, so that its modules import one another and no namesakes.

    Without ``__init__.py`` the folder is no package, and nothing is done.

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
            "the checks cannot be loaded", fact=f"{file} is no module", remedy="install the package again"
        )
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
