"""How commands are typed: without --, from a pipe, completed, and in words of other tools."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.main import get_command

from testbed.cli import context, inspect, main, topology_files, up
from testbed.cli.invocation import error_exit, shell
from testbed.cli.output import terminal
from testbed.drivers.host import memory
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.namespaces import lab_namespaces
from testbed.errors import Exit, MachineError
from testbed.lab import session
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read

ROOT = Path(__file__).parents[4]
GOOD = ROOT / "topologies/one-node.yaml"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder with the lab `one-node`, which is down."""
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("TESTBED_CACHE_DIR", str(tmp_path / "c"))
    monkeypatch.setattr(lab_namespaces, "enclosures", lambda *_: iter(()))
    monkeypatch.setattr(error_exit, "guard", lambda: None)
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path / "s", "one-node")
    workspace.create()
    session.apply_copy(GOOD.read_text(), workspace)
    return tmp_path / "s"


def _status(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["testbed", *words])
    with pytest.raises(SystemExit) as caught:
        main.main()
    return int(caught.value.code or 0)


ARRANGED = {
    "exec l t/g ls -l": "exec l t/g -- ls -l",
    "exec l t/g -- ls -l": "exec l t/g -- ls -l",
    "exec l t/g ls -- -l": "exec l t/g -- ls -- -l",
    "exec --timeout 5 l t/g ls --timeout 7": "exec --timeout 5 l t/g -- ls --timeout 7",
    "exec l --timeout=5 t/g sh -c x": "exec l --timeout=5 t/g -- sh -c x",
    "exec l t/g --help": "exec l t/g --help",
    "exec l t/g grep -q -v x": "exec l t/g -- grep -q -v x",
    "ssh l m ls -l": "ssh l m -- ls -l",
    "ssh l m": "ssh l m",
    "-q ssh l m tail -q": "-q ssh l m -- tail -q",
    "up f -q": "-q up f",
    "check l --prove -v": "-v check l --prove=all",
    "check l --prove=one": "check l --prove=one",
    "exec l t/g tool --prove": "exec l t/g -- tool --prove",
    "status": "status",
    "": "",
}


@pytest.mark.parametrize("words", ARRANGED)
def test_words_stand_where_typer_expects_them(words: str) -> None:
    assert " ".join(shell.arranged(words.split())) == ARRANGED[words]


def test_a_command_for_a_machine_needs_no_dashes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(inspect, "_admitted", lambda *_: (Workspace(root, "one-node"), None))
    monkeypatch.setattr(inspect.shutil, "which", lambda _: "/usr/bin/ssh")
    monkeypatch.setattr(inspect.os, "execv", lambda _, words: given.append(words))
    for words in (["ls", "-l", "--color"], ["--", "ls", "-l", "--color"]):
        assert _status(["ssh", "one-node", "node-a", *words], monkeypatch) == Exit.OK
    assert [words[4:] for words in given] == [["--", "ls", "-l", "--color"]] * 2


OTHERS = {"deploy": "up", "destroy": "down", "apply": "up", "list": "status", "inspect": "status"}


@pytest.mark.parametrize(("word", "ours"), OTHERS.items())
def test_a_verb_of_another_tool_leads_to_ours(
    word: str, ours: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _status([word, "x"], monkeypatch) == Exit.USAGE
    assert f"use `testbed {ours}`" in capsys.readouterr().err


def test_every_hint_names_a_verb_that_there_is() -> None:
    verbs = get_command(main.app).commands  # type: ignore[attr-defined]
    assert not set(shell._ELSEWHERE) & set(verbs)
    for hint in shell._ELSEWHERE.values():
        first, _, rest = hint.partition(" ")
        assert first.startswith("--") or first in verbs
        assert not rest or rest in verbs[first].commands


def test_help_and_version(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["-h"], ["check", "-h"], ["image", "-h"], ["image", "list", "-h"], ["--version"]):
        assert _status(words, monkeypatch) == Exit.OK
    shown = capsys.readouterr().out
    assert "testbed 0." in shown
    for word in (
        "TESTBED_STATE_DIR",
        "XDG_CACHE_HOME",
        "/var/lib/testbed",
        "~/.cache/testbed",
        "a wall is open",
        "130",
    ):
        assert word in shown
    assert all(f" {int(code)}  " in shown for code in Exit)


@pytest.mark.parametrize(
    ("quiet", "words"), [(True, ["-q", "up", "x"]), (True, ["up", "x", "--quiet"]), (False, ["up", "x"])]
)
def test_quiet_prints_no_progress(
    quiet: bool, words: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "bring_up", lambda *_: terminal.say("on the way"))
    with terminal.ERR.capture() as said:
        assert _status(words, monkeypatch) == Exit.OK
    assert ("on the way" in said.get()) is not quiet
    terminal.set_loudness(quiet=False, verbose=False)


def test_verbose_says_where_an_error_arose(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, shown in ((["graph", "missing"], False), (["graph", "missing", "-v"], True)):
        assert _status(words, monkeypatch) == Exit.USAGE
        assert ("loader.py" in capsys.readouterr().err) is shown
    terminal.set_loudness(quiet=False, verbose=False)


def test_validate_has_json(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "bad.yaml").write_text("version: 1\nname: UP\n")
    assert (
        _status(["validate", "--json", str(GOOD), str(root / "bad.yaml"), "missing"], monkeypatch)
        == Exit.USAGE
    )
    shown = capsys.readouterr()
    good, bad, missing = json.loads(shown.out)
    assert (good["ok"], good["name"], good["mistakes"]) == (True, "one-node", [])
    assert (bad["ok"], {item["path"] for item in bad["mistakes"]} >= {"name", "nodes"}) == (False, True)
    assert (missing["ok"], len(missing["mistakes"])) == (False, 1)
    assert shown.err == ""


def test_down_takes_all_labs_or_says_which_stay(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Workspace(root, "other")
    other.create()
    session.apply_copy(GOOD.read_text(), other)
    assert _status(["down"], monkeypatch) == Exit.USAGE
    with other.locked():
        assert _status(["down", "--all"], monkeypatch) == Exit.PROVISIONING
    shown = capsys.readouterr()
    assert ("one-node is down" in shown.out, "other is in use" in shown.err, "1 of 2" in shown.err) == (
        True,
        True,
        True,
    )
    assert _status(["down", "--all"], monkeypatch) == Exit.OK
    assert _status(["down", "--all"], monkeypatch) == Exit.OK
    assert "no labs" in capsys.readouterr().out
    assert not other.folder.exists()


def test_a_shell_completes_what_there_is(root: Path) -> None:
    lab = SimpleNamespace(params={"name": "one-node"})
    topology = resolve(read(GOOD).spec)
    assert shell.known_labs() == ["one-node"]
    assert shell.known_machines(lab) == [machine.name for machine in topology.machines]
    assert shell.known_guests(lab) == [guest.label for guest in topology.guests]
    assert set(shell.known_consoles(lab)) == {*shell.known_machines(lab), *shell.known_guests(lab)}
    assert "NET-01" in shell.known_controls()
    for name in ("missing", "", "\n", None, "../x"):
        assert shell.known_machines(SimpleNamespace(params={"name": name})) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("testbed status ", "one-node"),
        ("testbed exec one-node ", "red/web"),
        ("testbed ssh one-node c", "controller"),
        ("testbed check one-node --only NET-0", "NET-01"),
        ("testbed report one-node --format j", "junit"),
        ("testbed report one-node --format s", "sarif"),
        ("testbed do", "doctor"),
    ],
)
def test_bash_is_given_the_words(
    words: str, expected: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TESTBED_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert _status([], monkeypatch) == Exit.OK
    assert expected in capsys.readouterr().out.split()


def test_a_topology_is_read_from_a_pipe_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, GOOD.read_bytes())
    os.close(writing)
    topology, text = context.topology_of(f"/dev/fd/{reading}")
    os.close(reading)
    assert (topology.name, text) == ("one-node", GOOD.read_text())
    fifo = root.parent / "fifo"
    os.mkfifo(fifo)
    feeder = subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', str(GOOD), str(fifo)])
    assert context.topology_of(str(fifo))[1] == GOOD.read_text()
    assert feeder.wait(60) == 0


def test_a_pipe_is_not_read_again_for_the_lines_of_a_result(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"lab": {"topology_digest": resolve(read(GOOD).spec).digest}}
    monkeypatch.setattr(sys, "stdin", None)
    fifo = root.parent / "fifo"
    os.mkfifo(fifo)
    for name in ("-", str(fifo)):
        found = context.located(name, Workspace(root, "one-node"), data)
        assert found is not None
        assert found.file == "s/one-node/topology.yaml"
        assert found.text == GOOD.read_text()


def test_a_dash_is_standard_input(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, status in ((GOOD.read_text(), Exit.OK), ("version: 2\n", Exit.USAGE)):
        (root / "in").write_text(text)
        with (root / "in").open() as opened:
            monkeypatch.setattr(sys, "stdin", opened)
            assert _status(["graph", "-"], monkeypatch) == status
    assert "standard input:1: version" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # has no descriptor
    assert _status(["graph", "-"], monkeypatch) == Exit.USAGE
    monkeypatch.setattr(sys, "stdin", None)
    assert _status(["graph", "-"], monkeypatch) == Exit.USAGE


def test_a_file_that_is_called_like_the_lab_is_pointed_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("one-node").write_text("version: 2\n")
    assert _status(["graph", "one-node"], monkeypatch) == Exit.OK
    assert "the file is ./one-node" in capsys.readouterr().err
    assert _status(["graph", "./one-node"], monkeypatch) == Exit.USAGE
    Path("one-node").unlink()
    Path("one-node").mkdir()
    assert _status(["graph", "one-node"], monkeypatch) == Exit.OK
    assert capsys.readouterr().err.count("the file is") == 0


def test_a_copy_of_itself_is_no_accident(root: Path) -> None:
    workspace = Workspace(root, "one-node")
    session.apply_copy(context.topology_of("one-node")[1], workspace)
    assert workspace.topology_file.read_text() == GOOD.read_text()


GIB = 2**30


@pytest.mark.parametrize(
    ("total", "running", "fits"), [(16, 1, True), (9, 2, False), (9, 0, True), (6, 1, False)]
)
def test_a_lab_that_does_not_fit_beside_others_is_refused_with_numbers(
    total: int, running: int, fits: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"lab-{number}" for number in range(running)]
    for name in names:
        other = Workspace(root, name)
        other.create()
        session.apply_copy(GOOD.read_text().replace("name: one-node", f"name: {name}"), other)
    found = [lab_namespaces.Enclosure(name, root, 1) for name in names]
    monkeypatch.setattr(lab_namespaces, "enclosures", lambda *_: iter(found))
    monkeypatch.setattr(memory, "total", lambda: total * GIB)
    topology = resolve(read(GOOD).spec)
    if fits:
        up._require_memory(topology)
        return
    with pytest.raises(MachineError, match="does not fit beside") as caught:
        up._require_memory(topology)
    assert all(f"{name} has " in caught.value.fact for name in names)
    assert f"of {total} GiB are left" in caught.value.fact
    assert "`testbed down lab-0`" in caught.value.remedy


def test_a_lab_of_another_state_folder_is_taken_down_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "a b"
    other = Workspace(elsewhere, "other")
    other.create()
    session.apply_copy(GOOD.read_text().replace("name: one-node", "name: other"), other)
    found = [lab_namespaces.Enclosure("other", elsewhere, 1)]
    monkeypatch.setattr(lab_namespaces, "enclosures", lambda *_: iter(found))
    monkeypatch.setattr(memory, "total", lambda: 6 * GIB)
    with pytest.raises(MachineError, match="does not fit beside") as caught:
        up._require_memory(resolve(read(GOOD).spec))
    assert f"`TESTBED_STATE_DIR='{elsewhere}' testbed down other`" in caught.value.remedy


@pytest.mark.parametrize("running", [False, True])
def test_only_a_new_lab_is_looked_at_for_memory(
    running: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that runs is repaired, whatever else has been started beside it."""

    class EndError(Exception):
        pass

    def end(*_: object, **__: object) -> None:
        raise EndError

    names = ["other", *(["one-node"] if running else [])]
    other = Workspace(root, "other")
    other.create()
    session.apply_copy(GOOD.read_text().replace("name: one-node", "name: other"), other)
    monkeypatch.setattr(
        lab_namespaces,
        "enclosures",
        lambda *_: iter(lab_namespaces.Enclosure(name, root, 1) for name in names),
    )
    monkeypatch.setattr(memory, "total", lambda: 9 * GIB if running else 6 * GIB)
    monkeypatch.setattr(up.doctor, "require", lambda *_: None)
    monkeypatch.setattr(up, "interruptible", lambda: None)
    monkeypatch.setattr(up, "require_room", lambda *_: None)
    monkeypatch.setattr(up.consent, "require_images", lambda *_, **__: None)
    monkeypatch.setattr(up.build_inputs, "prepare_inputs", end)
    with pytest.raises(EndError if running else MachineError):
        up.bring_up(GOOD, up.UpOptions(), lambda *_: None)


def _module_in(environment: dict[str, str]) -> str:
    script = (
        "import os, pty, sys\nmaster, slave = pty.openpty()\nos.dup2(slave, 2)\n"
        "from testbed.cli.output import terminal\nterminal.say('words')\nprint(os.read(master, 1000))"
    )
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "NO_COLOR", "FORCE_COLOR", "TERM")
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**kept, "TERM": "xterm", **environment},
        capture_output=True, text=True, timeout=100,
        check=True, cwd=ROOT,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"CI": "true"}, False), ({"CI": "true", "FORCE_COLOR": "1"}, True)],
)
def test_a_terminal_of_a_ci_system_gets_no_colours_unless_asked(
    environment: dict[str, str], coloured: bool
) -> None:
    assert ("\\x1b[" in _module_in(environment)) is coloured


def test_an_error_of_typer_is_still_one_of_usage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise typer.BadParameter("words")

    monkeypatch.setattr(topology_files, "topology_of", missing)
    assert _status(["graph", "x"], monkeypatch) == Exit.USAGE
