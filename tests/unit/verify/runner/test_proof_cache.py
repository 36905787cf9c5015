"""An earlier proof counts exactly as long as nothing that it depends on has changed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from testbed.cli.check import check_walls
from testbed.cli.invocation.options import part, proving
from testbed.cli.main import main
from testbed.drivers.host.workspace import Workspace
from testbed.errors import Exit, UsageError
from testbed.model.resolve import resolve
from testbed.report.result import Run, exit_code, to_json
from testbed.topology_file.loader import read
from testbed.verify.evidence import Evidence
from testbed.verify.interruptions import Interruptions
from testbed.verify.runner.plugin import Checks, run_checks
from testbed.verify.runner.proof_cache import ALL_CASES, Part, ProofCache, Proving, code_digest

ROOT = Path(__file__).parents[4]
NAMES = ("NET-01.fleet", "it holds", "a hole")
_NUMBERS: Iterator[int] = count()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two checks, one with indirect imports; another file; a program that runs in guests."""
    files = {
        "checks/test_one.py": "from checks.common import look\n",
        "checks/test_two.py": "import os\n",
        "checks/common.py": "from testbed.verify.openflow import symbolic\n",
        "testbed/verify/openflow/symbolic.py": "import testbed.errors\n",
        "testbed/errors.py": "",
        "testbed/lonely.py": "",
        "testbed/verify/runner/plugin.py": "from testbed.plan import judge\n",
        "testbed/plan/judge.py": "",
        "testbed/report/result.py": "",
        "testbed/report/formats.py": "",
        "testbed/payload/probe/main.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def _proven(
    root: Path, *configuration: str, way: Proving = Proving.CHANGED, part: Part = ALL_CASES
) -> ProofCache:
    code_digest.cache_clear()
    return ProofCache(root / "proven.json", root, configuration, way, part)


def test_what_was_proven_is_known_by_its_names_and_configuration(root: Path) -> None:
    check = root / "checks/test_one.py"
    assert _proven(root, "a lab").proven_at(check, *NAMES) == ""
    _proven(root, "a lab", way=Proving.EVERYTHING).remember(check, *NAMES)
    assert _proven(root, "a lab").proven_at(check, *NAMES).startswith("20")
    assert _proven(root, "a lab", way=Proving.EVERYTHING).proven_at(check, *NAMES) == ""
    assert _proven(root, "another lab").proven_at(check, *NAMES) == ""
    assert _proven(root, "a lab").proven_at(check, *NAMES[:2], "another hole") == ""


@pytest.mark.parametrize(
    "changed",
    [
        "checks/test_one.py",
        "checks/common.py",
        "testbed/verify/openflow/symbolic.py",
        "testbed/errors.py",
        "testbed/payload/probe/main.py",
    ],
)
def test_a_change_in_anything_that_the_check_is_made_of_makes_it_unknown(root: Path, changed: str) -> None:
    _proven(root).remember(root / "checks/test_one.py", *NAMES)
    (root / changed).write_text((root / changed).read_text() + "# changed\n")
    assert _proven(root).proven_at(root / "checks/test_one.py", *NAMES) == ""


@pytest.mark.parametrize(
    "changed", ["testbed/verify/runner/plugin.py", "testbed/plan/judge.py", "testbed/report/result.py"]
)
def test_a_change_in_anything_that_judges_makes_it_unknown(root: Path, changed: str) -> None:
    """The check need not import it."""
    _proven(root).remember(root / "checks/test_two.py", *NAMES)
    (root / changed).write_text((root / changed).read_text() + "# changed\n")
    assert _proven(root).proven_at(root / "checks/test_two.py", *NAMES) == ""


def test_a_new_file_among_those_that_judge_makes_it_unknown(root: Path) -> None:
    _proven(root).remember(root / "checks/test_two.py", *NAMES)
    (root / "testbed/verify/drift.py").write_text("")
    assert _proven(root).proven_at(root / "checks/test_two.py", *NAMES) == ""


RUNNER = (
    "plugin",
    "execution",
    "breach_trials",
    "proof",
    "cases",
    "run",
    "isolation",
    "schedule",
    "trouble",
    "proof_cache",
)
JUDGES = (*(f"runner/{name}" for name in RUNNER), "check", "inventory", "drift")
OTHERS = ("testbed/report/result.py", "testbed/plan/controls.py")


@pytest.mark.parametrize("changed", [*(f"testbed/verify/{name}.py" for name in JUDGES), *OTHERS])
def test_every_real_check_depends_on_what_judges(tmp_path: Path, changed: str) -> None:
    for name in ("testbed", "checks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    check = tmp_path / "checks/test_storage.py"
    _proven(tmp_path).remember(check, *NAMES)
    assert _proven(tmp_path).proven_at(check, *NAMES)
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "# changed\n")
    assert _proven(tmp_path).proven_at(check, *NAMES) == ""


@pytest.mark.parametrize("changed", ["checks/test_two.py", "testbed/lonely.py", "testbed/report/formats.py"])
def test_a_change_elsewhere_does_not(root: Path, changed: str) -> None:
    _proven(root).remember(root / "checks/test_one.py", *NAMES)
    (root / changed).write_text("# changed\n")
    assert _proven(root).proven_at(root / "checks/test_one.py", *NAMES)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_spoilt_file_knows_nothing_and_is_replaced(root: Path, text: str) -> None:
    (root / "proven.json").write_text(text)
    assert _proven(root).proven_at(root / "checks/test_one.py", *NAMES) == ""
    _proven(root).remember(root / "checks/test_one.py", *NAMES)
    assert len(json.loads((root / "proven.json").read_text())) == 1


def test_the_real_checks_depend_on_what_runs_in_guests_and_on_their_own_helpers() -> None:
    code_digest.cache_clear()
    digests = {path.name: code_digest(path, ROOT) for path in (ROOT / "checks").glob("test_*.py")}
    assert len(set(digests.values())) == len(digests) > 8


@pytest.fixture
def judge(root: Path) -> Callable[..., Checks]:
    """Run a check whose wall has holes; how often one was opened is in its file's folder."""
    file = root / "checks" / f"test_hole_{next(_NUMBERS)}.py"
    template = f"""
from pathlib import Path
from testbed.verify.check import Breach, check
OPENED = Path({str(root / "opened")!r})
WALL = dict(open=False)
def opens(context):
    WALL["open"] = True
    OPENED.write_text((OPENED.read_text() if OPENED.exists() else "") + "x")
def closes(context): WALL["open"] = False
BREACHES = tuple(Breach(name, opens, closes, lambda context: WALL["open"]) for name in HOLES)
@check(id="NET-01", objective="it holds", severity="high", breaches=BREACHES)
def test_it(fleet):
    fleet.evidence.record("here", "look", "is it open?", str(WALL), 0.0)
    assert not WALL["open"], "open"
"""
    for other in ("test_one.py", "test_two.py"):
        (root / "checks" / other).unlink()

    def run(proven: ProofCache, holes: Sequence[str] = ("a hole",)) -> Checks:
        file.write_text(f"HOLES = {holes!r}\n{template}")
        topology = resolve(read(ROOT / "topologies/one-node.yaml").spec)
        evidence = Evidence(root / "evidence")
        (root / "lab").mkdir(exist_ok=True)
        opened = SimpleNamespace(topology=topology, workspace=Workspace(root, "lab"))
        fleet: Any = SimpleNamespace(
            topology=topology,
            lab=opened,
            evidence=evidence,
            new_phase=lambda *_: None,
            focus="",
            interruptions=Interruptions(),
        )
        return run_checks(fleet, root / "checks", prove=proven, only=(), progress=lambda _: None)

    return run


def test_what_is_unchanged_is_not_tried_again_and_that_is_told(
    root: Path, judge: Callable[..., Checks]
) -> None:
    ways = (Proving.EVERYTHING, Proving.CHANGED, Proving.EVERYTHING)
    for expected, way, opened in zip(("proven", "proven-before", "proven"), ways, (1, 1, 2), strict=True):
        plugin = judge(_proven(root, way=way))
        (proof,) = plugin.results[0].proofs
        assert (str(proof.verdict), len((root / "opened").read_text())) == (expected, opened)
        assert exit_code(to_json(Run("lab", "d", {}, "now", 1.0, tuple(plugin.results)))) == 0
        assert ("nothing that it depends on has changed" in proof.reason) is (expected == "proven-before")


def test_one_breach_of_several_is_tried_and_another_the_next_time(root: Path) -> None:
    check, names = root / "checks/test_one.py", [(*NAMES[:2], breach) for breach in ("one", "two", "three")]
    tried = []
    for _ in range(4):
        left_out = _proven(root, way=Proving.ONE).left_out(check, names)
        (chosen,) = set(names) - left_out
        _proven(root, way=Proving.ONE).remember(check, *chosen)
        tried.append(chosen[-1])
    assert tried == ["one", "two", "three", "one"]
    assert _proven(root, way=Proving.EVERYTHING).left_out(check, names) == set()
    assert _proven(root, way=Proving.ONE).left_out(check, []) == set()


def test_what_is_left_out_is_told_and_is_no_doubt(root: Path, judge: Callable[..., Checks]) -> None:
    plugin = judge(_proven(root, way=Proving.ONE), holes=("a hole", "another hole"))
    found = {proof.breach: str(proof.verdict) for proof in plugin.results[0].proofs}
    assert found == {"a hole": "proven", "another hole": "left-out"}
    assert (root / "opened").read_text() == "x"
    assert exit_code(to_json(Run("lab", "d", {}, "now", 1.0, tuple(plugin.results)))) == 0


def test_jobs_that_take_one_part_each_prove_everything_once(root: Path, judge: Callable[..., Checks]) -> None:
    found = []
    for number in (1, 2, 3):
        plugin = judge(_proven(root, way=Proving.EVERYTHING, part=Part(number, 3)))
        (proof,) = plugin.results[0].proofs
        found.append((str(proof.verdict), proof.reason))
    assert found[0][0] == "proven"
    assert found[1:] == [("left-out", f"part {number}/3 of the proofs was asked for") for number in (2, 3)]
    assert (root / "opened").read_text() == "x"


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_each_place_is_in_one_part(of: int) -> None:
    parts = [Part(number, of) for number in range(1, of + 1)]
    assert [sum(item.has(place) for item in parts) for place in range(20)] == [1] * 20
    sizes = [sum(item.has(place) for place in range(20)) for item in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2/3", Part(2, 3)), ("1/1", ALL_CASES), (ALL_CASES, ALL_CASES), ("1000/1000", Part(1000, 1000))],
)
def test_a_part_is_two_numbers(text: object, wanted: Part) -> None:
    assert part(text) == wanted
    assert part(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text", ["", "2", "0/3", "4/3", "1/0", "-1/3", "1/3/3", "a/b", "1 /3", "1/1001", "²/3"]
)
def test_no_other_text_is_a_part(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=re.escape(repr(text))):
        part(text)


def test_a_part_of_no_proof_is_refused() -> None:
    with pytest.raises(UsageError, match="--part 1/2 chooses breaches"):
        check_walls(
            SimpleNamespace(),
            prove=Proving.NOTHING,
            part=Part(1, 2),
            only=[],
            as_json=False,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1", Proving.EVERYTHING),
        ("all", Proving.EVERYTHING),
        ("changed", Proving.CHANGED),
        ("one", Proving.ONE),
        ("0", Proving.NOTHING),
    ],
)
def test_what_is_to_be_proven_is_one_word(text: str, wanted: Proving) -> None:
    assert proving(text) is wanted


@pytest.mark.parametrize("words", [["--prove"], ["--prove=changed"], []])
def test_the_option_may_stand_alone(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["testbed", "check", *words, "no-such-lab"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == Exit.USAGE
    assert "there is no lab no-such-lab" in capfd.readouterr().err


def test_another_word_for_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["testbed", "check", "--prove=never", "no-such-lab"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == Exit.USAGE
    assert "'never' is none of no, all, changed" in " ".join(capfd.readouterr().err.replace("│", " ").split())
