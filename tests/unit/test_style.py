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

# What each sub-package may import of the package, besides itself (docs/decisions/0032). From the bottom up: a
# name stands for all that is below it, so that `drivers` covers `drivers.ssh`. A module at the top stands for
# itself.
BASE = {"deadline", "errors", "gc_pause", "timeouts", "untrusted"}
PURE = BASE | {"topology_file", "model", "plan", "plan.host_config", "plan.libvirt_xml"}
HOST = PURE | {"drivers.host"}
VERIFY = PURE | {"drivers", "engine.place", "hosts", "inventory", "lab", "verify"}
CLI = PURE | {"adoption", "data_files", "drivers", "engine", "hosts", "inventory", "lab", "report"}
ALLOWED = {
    "untrusted": set(),
    "errors": {"untrusted"},
    "deadline": set(),
    "gc_pause": set(),
    "timeouts": set(),
    "data_files": {"errors"},
    "payload": set(),
    "payload.adoption": set(),
    "payload.attacks": set(),
    "payload.heartbeats": set(),
    "payload.images": set(),
    "payload.flows": set(),
    "payload.kernel": {"payload.attacks"},
    "payload.residues": set(),
    "payload.inventory.base": set(),
    "payload.inventory.host": {"payload.inventory.base"},
    "payload.inventory.network": {"payload.inventory.base", "payload.inventory.host"},
    "payload.inventory": {"payload.inventory.base", "payload.inventory.host", "payload.inventory.network"},
    "payload.probe": set(),
    "topology_file": BASE,
    "model": BASE | {"topology_file"},
    "plan.libvirt_xml": BASE | {"topology_file", "model"},
    "plan.host_config": BASE | {"topology_file", "model", "plan.libvirt_xml"},
    "plan": PURE,
    "inventory": PURE,
    "inventory.reference": PURE | {"inventory"},
    "hosts": PURE | {"drivers.host", "report"},
    "adoption": HOST | {"hosts"},
    "report": BASE | {"model", "topology_file"},
    "engine": PURE,
    "drivers.host": BASE | {"topology_file"},
    "drivers": {"drivers.host"},  # pki
    "drivers.namespaces": HOST,
    "drivers.ssh": HOST | {"payload"},
    "drivers.hypervisor": HOST | {"drivers.ssh"},
    "drivers.network": HOST,
    "drivers.images": HOST | {"engine.place"},
    "drivers.snapshots": HOST
    | {"drivers.hypervisor", "drivers.images", "drivers.ssh", "engine.place", "inventory"},
    "drivers.capabilities": HOST | {"drivers.hypervisor", "drivers.images"},
    "drivers.places": HOST | {"drivers", "engine.place", "inventory"},
    "lab": PURE | {"data_files", "drivers", "engine"},
    "verify": PURE | {"drivers", "engine.place", "inventory", "inventory.reference", "lab", "report"},
    "verify.probe": VERIFY | {"payload.probe"},
    "verify.observation": VERIFY | {"verify.probe"},
    "verify.witnesses": VERIFY | {"verify.probe"},
    "verify.attackers": VERIFY | {"payload.probe", "verify.observation", "verify.probe", "verify.witnesses"},
    "verify.exhaustion": VERIFY | {"verify.attackers"},
    "verify.heartbeats": VERIFY | {"payload.heartbeats", "report", "verify.attackers", "verify.exhaustion"},
    "verify.agents": VERIFY | {"payload.attacks", "verify.attackers"},
    "verify.devices": VERIFY | {"verify.witnesses"},
    "verify.storage": VERIFY | {"verify.devices"},
    "verify.processor": VERIFY,
    "verify.openflow": VERIFY | {"verify.witnesses"},
    "verify.runner": VERIFY | {"data_files", "engine", "report", "verify.heartbeats", "verify.probe"},
    "cli.output": BASE | {"engine.place", "report"},
    "cli.invocation": CLI | {"cli.output", "verify.runner"},
    "cli.machines": CLI | {"cli.output", "verify"},
    "cli": CLI | {"cli.invocation", "cli.machines", "cli.output", "verify", "verify.runner"},
}
WHOLE = ("drivers", "engine", "lab")  # where these are allowed, all of their sub-packages are
ONE_FILE = {
    "subprocess": {
        "drivers/host/process.py",
        "payload/adoption/host_restore.py",
        "payload/adoption/host_state.py",
        "payload/residues/guest_remnants.py",
        "payload/flows/computed.py",
        "payload/guest_channels.py",
        "payload/image_probe.py",
        "payload/images/import_attack.py",
        "payload/images/node_import.py",
        "payload/inventory/base/programs.py",
        "payload/volume_encryption.py",
        "payload/volume_readers.py",
        "payload/vsock_sockets.py",
    },
    "pyroute2": {"drivers/network/bridges.py"},
    "libvirt": {"drivers/hypervisor/connection.py"},
    "libvirt_qemu": {"drivers/hypervisor/connection.py"},
    "ovs": {"drivers/network/northbound.py", "verify/openflow/flow_table.py"},
    "ovsdbapp": {"drivers/network/northbound.py"},
    "paramiko": {"drivers/ssh/client.py"},
    "ansible_runner": {"drivers/images/build.py"},
}
MOST = 12  # modules of a package


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


def _packages() -> set[str]:
    return {
        str(path.parent.relative_to(PACKAGE)).replace("/", ".") for path in PACKAGE.rglob("__init__.py")
    } - {"."}


def _place(name: str) -> str:
    """Return the sub-package of a module, without the package's own name.

    A module at the top is its own place.
    """
    module = PACKAGE.joinpath(*name.split(".")[1:])
    parts = module.relative_to(PACKAGE).parts
    return ".".join(parts if module.is_dir() or len(parts) == 1 else parts[:-1])


def _may(user: str, used: str, name: str) -> bool:
    """Whether modules of a sub-package may import a module (`name`, of sub-package `used`)."""
    allowed = ALLOWED[user] | {user}
    above = used.split(".", maxsplit=1)[0]
    return (
        used in allowed
        or name.removeprefix("testbed.") in allowed
        or (above in WHOLE and above in allowed and user != above)
    )


def _own(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = {name for name in _imports(path) if name.startswith("testbed.")}
    return {name for name in found if PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file()}


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    user = _place(".".join(("testbed", *path.relative_to(PACKAGE).with_suffix("").parts)))
    if path.name not in ("__init__.py", "__main__.py"):
        assert {name for name in _own(path) if not _may(user, _place(name), name)} == set()


def test_no_sub_package_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {}
    for path in _modules():
        user = _place(".".join(("testbed", *path.relative_to(PACKAGE).with_suffix("").parts)))
        graph.setdefault(user, set()).update(_place(name) for name in _own(path))
    assert list(TopologicalSorter({user: used - {user} for user, used in graph.items()}).static_order())


def test_the_table_has_each_sub_package_and_no_other() -> None:
    top = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert set(ALLOWED) == _packages() | top


def test_only_the_command_line_imports_the_runner_of_checks() -> None:
    folders = (PACKAGE / "cli", PACKAGE / "verify/runner")
    outside = [
        path
        for path in (*_modules(), *(ROOT / "checks").rglob("*.py"))
        if not any(path.is_relative_to(item) for item in folders)
    ]
    assert [
        path for path in outside if any(name.startswith("testbed.verify.runner") for name in _imports(path))
    ] == []


def test_checks_import_no_driver_and_stand_beside_no_helper() -> None:
    paths = sorted((ROOT / "checks").rglob("*.py"))
    assert [
        path for path in paths if any(name.startswith("testbed.drivers") for name in _imports(path))
    ] == []
    assert [path.name for path in (ROOT / "checks").glob("*.py") if not path.name.startswith("test_")] == [
        "__init__.py"
    ]


@pytest.mark.parametrize("package", sorted(_packages()))
def test_a_package_has_few_modules(package: str) -> None:
    found = [
        path for path in PACKAGE.joinpath(*package.split(".")).glob("*.py") if path.name != "__init__.py"
    ]
    assert len(found) <= MOST


@pytest.mark.parametrize("library", ONE_FILE)
def test_a_library_is_imported_by_one_file(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in _modules()
        if any(name.split(".")[0] == library for name in _imports(path))
    }
    assert users == ONE_FILE[library]


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {
        ".".join(("testbed", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in _modules()
    }
    graph = {name: {found for found in _imports(path) if found in names} for name, path in names.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_packages_do_nothing_when_imported() -> None:
    for path in (*PACKAGE.rglob("__init__.py"), *(ROOT / "checks").rglob("__init__.py")):
        assert path.read_text() == "", path


def _run(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_lint() -> None:
    _run("ruff", "check", "testbed", "checks", "tests", "benchmarks", "playbooks")


def test_format() -> None:
    _run("ruff", "format", "--check", ".")


def test_types() -> None:
    _run("mypy")
