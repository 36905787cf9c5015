"""No environment changes what is checked: each hostile one gives the same cases and verdicts, or an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.model.resolve import resolve
from testbed.topology_file.loader import read
from testbed.verify.inventory import inventory
from tests.fake_checks import TOPOLOGY, checks_of, declare

ROOT = Path(__file__).parents[4]
BODY = (
    declare()
    + "def test_it(fleet):\n    assert not look(fleet), 'open'\n"
    + declare(control="NET-02")
    + (
        "def test_page(fleet, machine):\n    assert look(fleet) or machine.name, 'open'\n    assert "
        "look(fleet), 'the page is shared'\n"
    )
)
RUN = """
import json, sys
from pathlib import Path
from tests.fake_checks import fake_fleet
from testbed.report.result import Run, exit_code, to_json
from testbed.verify.inventory import inventory
from testbed.verify.runner.plugin import run_checks
state, folder = map(Path, sys.argv[1:3])
done = run_checks(fake_fleet(state), folder, prove=None, only=(), progress=lambda _: None)
data = to_json(Run("lab", "d", {}, "now", 1.0, tuple(done.results), (), tuple(done.errors), inventory(folder).controls))
print(json.dumps({"exit": int(exit_code(data)), "errors": done.errors,
                  "cases": [[check["id"], check["case"], check["verdict"], check["reason"][:80]] for check in data["checks"]]}))
"""  # noqa: E501 - lines of a program
PLUGIN = (
    "import pytest\n\n\n@pytest.hookimpl(trylast=True)\ndef pytest_collection_modifyitems(items):\n    del "
    "items[:]\n"
)
CONFTEST = PLUGIN + "\n\ncollect_ignore_glob = ['*']\n"
SETTINGS = "[{}]\naddopts = -k nothing\npython_files = nothing.py\npython_functions = nothing\n"


def _run(
    state: Path, folder: Path, cwd: Path, flags: tuple[str, ...] = (), **variables: str
) -> tuple[int, dict[str, Any], str]:
    """Run checks in another process; return its status, what it says and its errors."""
    program = f"import sys\nsys.path[:0] = [{str(ROOT)!r}]\n{RUN}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    argv = [sys.executable, *flags, "-c", program, str(state), str(folder)]
    done = subprocess.run(
        argv, env=clean | variables, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else {}, done.stderr


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder around the checks, from which the tool is run, with everything in it that pytest would
    read.
    """
    for name, text in {
        "conftest.py": CONFTEST,
        "pytest.ini": SETTINGS.format("pytest"),
        "tox.ini": SETTINGS.format("pytest"),
        "setup.cfg": SETTINGS.format("tool:pytest"),
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-k nothing'\n",
        ".pytest.ini": SETTINGS.format("pytest"),
        "hostile_plugin.py": PLUGIN,
    }.items():
        (tmp_path / name).write_text(text)
    checks_of(tmp_path, BODY)
    (tmp_path / "checks/conftest.py").write_text(CONFTEST)
    return tmp_path


SAME = {
    "nothing": {},
    "a selection": {"PYTEST_ADDOPTS": '-k "not page"'},
    "no assertions of pytest's": {"PYTEST_ADDOPTS": "--assert=plain"},
    "more words": {"PYTEST_ADDOPTS": "-v"},
    "a stop at the first": {"PYTEST_ADDOPTS": "-x --maxfail=1"},
    "only to collect": {"PYTEST_ADDOPTS": "--collect-only"},
    "another order": {"PYTEST_ADDOPTS": "-n 2 -p xdist"},
    "a file to leave out": {"PYTEST_ADDOPTS": "--ignore-glob=*test_*"},
    "a case to leave out": {"PYTEST_ADDOPTS": "--deselect=test_wall"},
    "an option that does not exist": {"PYTEST_ADDOPTS": "--no-such-option"},
    "a plug-in": {"PYTEST_PLUGINS": "hostile_plugin", "PYTHONPATH": "."},
    "a plug-in that does not exist": {"PYTEST_PLUGINS": "no.such.plugin"},
    "a plug-in as an option": {"PYTEST_ADDOPTS": "-p hostile_plugin", "PYTHONPATH": "."},
    "no plug-ins": {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    "an empty word": {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "", "PYTEST_ADDOPTS": ""},
}


@pytest.mark.parametrize("how", SAME)
def test_what_pytest_is_told_around_us_changes_nothing(hostile: Path, how: str) -> None:
    status, told, errors = _run(hostile, hostile / "checks", hostile, **SAME[how])
    assert status == 0, errors
    assert told == {
        "exit": 1,
        "errors": [],
        "cases": [
            ["NET-01", "fleet", "pass", ""],
            ["NET-02", "controller", "fail", "the page is shared"],
            ["NET-02", "node", "fail", "the page is shared"],
        ],
    }


def _custom(hostile: Path, name: str) -> dict[str, str]:
    (hostile / "more").mkdir()
    (hostile / f"more/{name}.py").write_text("import builtins\n")
    return {"PYTHONPATH": f"{hostile / 'nowhere'}{os.pathsep}{hostile / 'more'}"}


@pytest.mark.parametrize(
    ("variables", "flags", "told"),
    [
        ({"PYTHONOPTIMIZE": "1"}, (), "leaves asserts out"),
        ({"PYTHONOPTIMIZE": "2", "PYTEST_ADDOPTS": "--assert=plain"}, (), "leaves asserts out"),
        ({}, ("-O",), "leaves asserts out"),
        ("sitecustomize", (), "start code before ours"),
        ("usercustomize", (), "start code before ours"),
    ],
)
def test_what_cannot_be_undone_is_refused(
    hostile: Path, variables: Any, flags: tuple[str, ...], told: str
) -> None:
    found = _custom(hostile, variables) if isinstance(variables, str) else variables
    status, _, errors = _run(hostile, hostile / "checks", hostile, flags, **found)
    assert status != 0
    assert told in errors


def _elsewhere(folder: Path) -> str:
    """Make a package of checks whose helpers say that every wall holds."""
    (folder / "elsewhere/checks").mkdir(parents=True)
    (folder / "elsewhere/checks/__init__.py").write_text("")
    (folder / "elsewhere/checks/helper.py").write_text("def is_open(): return False\n")
    return str(folder / "elsewhere")


def test_helpers_come_from_the_same_folder_as_the_checks(tmp_path: Path) -> None:
    check = "def test_it(fleet):\n    look(fleet)\n    assert not is_open(), 'open'\n"
    folder = checks_of(tmp_path, f"from checks.helper import is_open\n{declare()}{check}")
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("def is_open(): return True\n")
    status, told, errors = _run(tmp_path, folder, tmp_path, PYTHONPATH=_elsewhere(tmp_path))
    assert status == 0, errors
    assert told["cases"] == [["NET-01", "fleet", "fail", "open"]]


def test_checks_that_were_imported_from_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = checks_of(tmp_path, declare() + "def test_it(fleet): look(fleet)\n")
    (folder / "__init__.py").write_text("")
    before = f"import sys\nsys.path.insert(0, {_elsewhere(tmp_path)!r})\nimport checks\n"
    program = f"{before}sys.path[:0] = [{str(ROOT)!r}]\n{RUN}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "other checks than the tool's own would run" in done.stderr


@pytest.mark.parametrize("variables", [{}, {"PYTEST_ADDOPTS": '-k "not page"', "PYTHONPATH": "."}])
def test_every_case_of_the_real_checks_runs(hostile: Path, variables: dict[str, str]) -> None:
    """Against machines that have names only, so that none of them is a pass."""
    folder = ROOT / "checks"
    status, told, errors = _run(hostile, folder, hostile, **variables)
    assert status == 0, errors
    expected = inventory(folder).cases(resolve(read(TOPOLOGY).spec), ())
    assert len(told["cases"]) == expected.total() > 30
    assert not [
        error
        for error in told["errors"]
        if "did not run" in error or "accounts for" in error or "pytest" in error
    ]
    assert {verdict for *_, verdict, _ in told["cases"]} <= {"inconclusive", "not-applicable"}
