"""Lint, types and import direction, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "testbed"
pytestmark = pytest.mark.lint

# What each layer may import of the package, besides itself (DESIGN.md, section 4).
PURE = {"errors", "foreign", "garbage", "spec", "model", "plan"}
ALLOWED = {
    "foreign": set(),
    "errors": {"foreign"},
    "garbage": set(),
    "spec": {"errors", "foreign", "garbage"},
    "model": {"errors", "foreign", "garbage", "spec"},
    "plan": PURE,
    "resources": {"errors"},
    "ports": PURE,
    "trace": {"foreign"},
    "apply": PURE | {"ports", "trace"},
    "observe": PURE | {"ports"},
    "revival": PURE | {"ports", "apply", "observe", "lab"},
    "report": PURE,
    "guest": set(),
    "drivers": PURE | {"ports", "guest"},
    "lab": PURE | {"ports", "drivers", "resources"},
    "display": PURE | {"ports", "report"},
    "terminal": PURE | {"display", "report"},
    "interrupts": set(),
    "ending": PURE | {"terminal"},
    "building": PURE | {"apply", "drivers", "interrupts", "lab", "resources", "terminal", "trace", "cli_lab", "verify"},
    "cli_check": PURE | {"drivers", "lab", "report", "revival", "terminal", "verify"},
    "cli_checkpoint": PURE | {"building", "drivers", "lab", "observe", "terminal", "cli_lab"},
    "cli_image": PURE | {"drivers", "resources", "terminal"},
    "cli_lab": PURE | {"drivers", "lab", "report"},
    "cli_look": PURE | {"drivers", "lab", "observe", "terminal", "verify", "cli_lab"},
    "verify": PURE | {"ports", "drivers", "resources", "lab", "report", "observe", "guest"},
}
ONE_FILE = {
    "subprocess": {"process.py"},
    "pyroute2": {"fabric.py"},
    "libvirt": {"hypervisor.py"},
    "libvirt_qemu": {"hypervisor.py"},
    "ovs": {"openflow.py", "ovn.py"},
    "ovsdbapp": {"ovn.py"},
    "paramiko": {"ssh.py"},
    "ansible_runner": {"assemble.py"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer in ("cli", "__init__"):
        return
    used = {name.split(".")[1] for name in _imports(path) if name.startswith("testbed.")}
    assert used - ALLOWED[layer] - {layer} == set()


@pytest.mark.parametrize("library", ONE_FILE)
def test_a_library_is_imported_by_one_file(library: str) -> None:
    users = {path.name for path in _modules() if any(name.split(".")[0] == library for name in _imports(path))}
    assert users == ONE_FILE[library]


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {".".join(("testbed", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in _modules()}
    graph = {name: {found for found in _imports(path) if found in names} for name, path in names.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_packages_do_nothing_when_imported() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert path.read_text() == "", path


def _run(*argv: str) -> None:
    done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_lint() -> None:
    _run("ruff", "check", "testbed", "checks", "tests", "playbooks")


def test_types() -> None:
    _run("mypy")
