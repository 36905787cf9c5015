"""Reports from the command line: SARIF, folders, step summaries, keys of images."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.cli import main
from testbed.cli.check import summarize
from testbed.data_files import playbooks, topologies
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.images.cache import ImageCache
from testbed.errors import Exit
from testbed.model.resolve import resolve
from testbed.report import formats
from testbed.report.result import CheckResult, Run, Verdict, to_json
from testbed.topology_file.loader import read

ONE_NODE = topologies() / "one-node.yaml"
Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TESTBED_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["testbed", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def folder(tmp_path: Path, command: Command) -> Path:
    """A run of the lab one-node that found an open wall; the lab is down."""
    workspace = Workspace(tmp_path / "state", "one-node")
    workspace.create()
    made = workspace.runs / "000001-20260101T000000-aaaa"
    made.mkdir()
    digest = resolve(read(ONE_NODE).spec).digest
    (made / "result.json").write_text(json.dumps(result(Verdict.FAIL, "blue/web leaks", digest)))
    return made


def result(verdict: Verdict, reason: str, digest: str = "d") -> dict[str, Any]:
    check = CheckResult("NET-01", "fleet", "It holds", "critical", verdict, reason, False, 1.0, ())
    return to_json(Run("one-node", digest, {}, "2026-01-01T00:00:00+00:00", 1.0, (check,)))


def _place(text: str) -> tuple[str, int]:
    place = json.loads(text)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    return place["artifactLocation"]["uri"], place["region"]["startLine"]


def test_a_topology_below_the_current_folder_is_named_relative_to_it(
    command: Command, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs/mine.yaml").write_text("# mine\n" + ONE_NODE.read_text())
    assert command("report", "labs/mine.yaml", "--format", "sarif") == Exit.OK
    lines = (tmp_path / "labs/mine.yaml").read_text().splitlines()
    told = capsys.readouterr()
    blue = next(number for number, line in enumerate(lines, 1) if line == "  blue:")
    expected = next(
        number for number, line in enumerate(lines, 1) if number > blue and line.strip().startswith("web:")
    )
    assert _place(told.out) == ("labs/mine.yaml", expected)
    assert "lines may be wrong" not in told.err


def test_a_topology_elsewhere_is_named_by_its_uri_and_one_that_has_changed_is_reported(
    command: Command,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    changed = tmp_path / "mine.yaml"
    changed.write_text(ONE_NODE.read_text().replace("tcp/5432", "tcp/5433"))
    monkeypatch.chdir(other)
    assert command("report", str(changed), "--format", "sarif") == Exit.OK
    told = capsys.readouterr()
    assert _place(told.out)[0] == changed.as_uri()
    assert "lines may be wrong" in told.err


def test_a_lab_that_is_down_has_no_lines_and_one_that_is_up_has_those_of_its_copy(
    command: Command, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("report", "one-node", "--format", "sarif") == Exit.OK
    told = capsys.readouterr()
    assert "locations" not in json.loads(told.out)["runs"][0]["results"][0]
    assert "name its topology file" in told.err
    copy = tmp_path / "state/one-node/topology.yaml"
    copy.write_text(ONE_NODE.read_text())
    assert command("report", "one-node", "--format", "sarif") == Exit.OK
    assert _place(capsys.readouterr().out)[0] == "state/one-node/topology.yaml"


def test_the_folder_of_the_latest_run_is_printed_alone(
    command: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("report", "one-node", "--folder") == Exit.OK
    assert capsys.readouterr().out == f"{folder}\n"


def test_the_key_of_the_images_is_printed_alone_and_follows_the_recipes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("image", "key") == Exit.OK
    printed = capsys.readouterr().out
    assert re.fullmatch(r"[0-9a-f]{16}\n", printed)
    cache = ImageCache(tmp_path, playbooks())
    assert cache.key() == printed.strip()
    recipes = cache.recipes()
    name, first = next(iter(recipes.items()))
    monkeypatch.setattr(
        ImageCache, "recipes", lambda _: recipes | {name: type(first)("", "", "", "", (), (), "0" * 16)}
    )
    assert cache.key() != printed.strip()


def test_a_step_summary_is_added_to_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    summarize("# report\n")
    assert file.read_text() == "before\n# report\n"


@pytest.mark.parametrize("where", ["", "missing/summary", "\0"])
def test_without_a_job_or_a_file_there_is_no_summary_and_no_error(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"GITHUB_STEP_SUMMARY": where})
    summarize("# report\n")
    assert list(tmp_path.iterdir()) == []
    assert ("no step summary" in capsys.readouterr().err) is bool(where)


def test_a_summary_is_bounded_at_the_end_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = result(Verdict.FAIL, "\u20ac" * 1500)
    data["checks"] *= 300
    report = formats.markdown(data)
    assert len(report.encode()) > 1_000_000
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    summarize(report)
    written = (tmp_path / "summary").read_text()
    assert 190_000 < len(written.encode()) <= 200_000
    kept, _, note = written.rpartition("\n\n")
    assert report.startswith(kept + "\n")
    left = len(report.splitlines()) - len(kept.splitlines())
    assert note == f"{left} more lines are in report.md, in the folder of the run.\n"
    assert formats.bounded("# short\n", 200_000) == "# short\n"


def test_a_report_is_cut_only_if_it_does_not_fit() -> None:
    report = "a\nb\nc\n"
    room = len(report) + len(formats._LEFT_OUT) + 20
    assert formats.bounded(report, room) == report
    assert formats.bounded(report, room - 1).startswith("a\nb\n\n1 more lines")
