"""Changes the code that judges, one small change at a time, and counts how many some unit test notices.

    python benchmarks/judges.py [--count 60] [--seed 1] [--only PATH]… [--keep FILE]

Cosmic Ray makes the changes: another comparison, a `not` more, a loop that runs zero times, another
exception. They are made in a copy of the working tree. One change is drawn at random for each chosen line, so
that a long line does not count for ten. Prints JSON: changes made, noticed, and each change that no test
noticed, with its difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkItem

ROOT = Path(__file__).parents[1]
JUDGES = ("testbed/verify", "testbed/report", "checks")
TESTS = "-m pytest -x -q -p no:cacheprovider --numprocesses 2 -m 'not lint' tests/unit"
TIMEOUT = 180  # seconds for all unit tests on one change; a change that never ends counts as noticed
# Changes of annotations (`X | None`) and of the arithmetic of texts mean nothing.
IGNORED = ("core/ReplaceBinaryOperator_BitOr", "core/ReplaceBinaryOperator_Mod", "core/RemoveDecorator")
CONFIGURATION = """
[cosmic-ray]
module-path = {modules}
timeout = {timeout}.0
excluded-modules = []
test-command = {command}
[cosmic-ray.distributor]
name = "local"
"""


def modules(folder: Path, only: Sequence[str]) -> list[str]:
    """Return the files that judge, relative to a copy of the tree."""
    found: list[Path] = []
    for name in only or JUDGES:
        found += sorted((folder / name).rglob("*.py")) if (folder / name).is_dir() else [folder / name]
    return [str(path.relative_to(folder)) for path in found if path.name != "__init__.py"]


def copy(folder: Path) -> None:
    """Copy what git knows of the working tree, and what it does not ignore."""
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def sample(database: WorkDB, count: int, seed: int) -> list[WorkItem]:
    """Return one change for each of so many lines, drawn at random."""
    lines: dict[tuple[str, int], list[WorkItem]] = {}
    for item in sorted(database.work_items, key=lambda item: item.job_id):
        change = item.mutations[0]
        if not change.operator_name.startswith(IGNORED):
            lines.setdefault((str(change.module_path), change.start_pos[0]), []).append(item)
    draw = random.Random(seed)
    for items in lines.values():
        items.sort(key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence))
    return [draw.choice(lines[line]) for line in draw.sample(sorted(lines), min(count, len(lines)))]


def run(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Make the changes in a copy of the tree and run the unit tests on each."""
    cosmic = [sys.executable, "-m", "cosmic_ray.cli"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    configuration, session = folder / "cosmic-ray.toml", folder / "session.sqlite"
    command = f"{sys.executable} {TESTS}"
    text = CONFIGURATION.format(
        modules=json.dumps(modules(folder, options.only)), timeout=TIMEOUT, command=json.dumps(command)
    )
    configuration.write_text(text)
    subprocess.run(
        [*cosmic, "init", configuration, session], cwd=folder, env=environment, check=True, stdout=sys.stderr
    )
    subprocess.run(
        [*cosmic, "baseline", configuration], cwd=folder, env=environment, check=True, stdout=sys.stderr
    )
    with use_db(str(session), WorkDB.Mode.open) as database:
        chosen = sample(database, options.count, options.seed)
        database.clear()
        database.add_work_items(chosen)
    subprocess.run(
        [*cosmic, "exec", configuration, session], cwd=folder, env=environment, check=True, stdout=sys.stderr
    )
    with use_db(str(session), WorkDB.Mode.open) as database:
        results = list(database.completed_work_items)
    missed = [
        {
            "file": str(item.mutations[0].module_path),
            "line": item.mutations[0].start_pos[0],
            "diff": result.diff,
        }
        for item, result in results
        if not result.is_killed
    ]
    noticed, made = len(results) - len(missed), len(results)
    return {
        "seed": options.seed,
        "changes": made,
        "noticed": noticed,
        "ratio": round(noticed / made, 3),
        "missed": missed,
    }


def main() -> None:
    """Read the command line, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="changes to make")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATH", help="a file or folder instead of every judge"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        copy(Path(name))
        print(json.dumps(run(Path(name), options), indent=1))


if __name__ == "__main__":
    main()
