"""The printed text is the given text, and no program that shows it executes a part of it."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import threading
from pathlib import Path

import pytest

from testbed.cli import main, topology_files
from testbed.cli.invocation import error_exit
from testbed.cli.output import terminal
from testbed.errors import ProvisioningError, TestbedError, TopologyError
from testbed.topology_file.loader import load

ROOT = Path(__file__).parents[4]
HOSTILE = (
    "\\[/x] \\[red]red[/red] [link=http://x]y[/link]\n::error::told\n  ::warning::told\r\n"
    "##vso[task.complete] \x1b[31m\u202e\ud800"
)


def _said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.split("\n")


@pytest.mark.parametrize(
    "text",
    [
        "tap56a4e9dd . fd00:a:b4",
        "[bold]not bold[/bold]",
        "red/web :warning: :+1:",
        "\\[/x]",
        "\\[red]",
        "[/]",
    ],
)
def test_nothing_that_is_said_is_taken_for_markup(text: str) -> None:
    with terminal.ERR.capture() as said:
        terminal.say(text)
    assert said.get().endswith(f" s  {text}\n")


def _require_obeyed_by_nobody(lines: list[str]) -> None:
    for line in lines:
        assert not line.lstrip().startswith("::")
        assert "##vso[" not in line
        assert line.isprintable()


def _wrong() -> TestbedError:
    return ProvisioningError(f"what {HOSTILE}", fact=f"a fact\n{HOSTILE}", remedy=f"do {HOSTILE}")


@pytest.mark.parametrize(
    "tell",
    [
        lambda: terminal.say(HOSTILE),
        lambda: terminal.warn(HOSTILE),
        lambda: terminal.fail(_wrong()),
        lambda: terminal.fail(
            ProvisioningError("many", fact="\n".join(map(str, [_wrong(), _wrong()])), remedy="-")
        ),
        lambda: terminal.fail(TopologyError("::error::x\n::error::y", [])),
        lambda: terminal.fail_inside(ValueError(HOSTILE)),
    ],
)
def test_what_is_told_is_obeyed_by_nobody(
    capsys: pytest.CaptureFixture[str], tell: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal.ERR.capture() as said:
        tell()  # type: ignore[operator]
    lines = said.get().split("\n")
    assert any("told" in line or "::error::x" in line for line in lines)
    _require_obeyed_by_nobody(lines)


def test_results_are_obeyed_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.out(HOSTILE)
    terminal.pass_on(HOSTILE.encode(errors="replace"))
    _require_obeyed_by_nobody(capsys.readouterr().out.split("\n"))


def test_json_keeps_every_text_and_has_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.out_json({"text": HOSTILE, "##vso[x]": "## a ###"}, indent=1)
    shown = capsys.readouterr().out
    assert shown.isascii()
    _require_obeyed_by_nobody(shown.split("\n"))
    assert json.loads(shown) == {"text": HOSTILE, "##vso[x]": "## a ###"}


def test_facts_of_several_lines_stay_readable() -> None:
    told = str(ProvisioningError("it failed", fact="status 1: one\ntwo\n  three", remedy="repeat it")).split(
        "\n"
    )
    assert told == [
        "it failed",
        "  observed: status 1: one",
        "          | two",
        "          |   three",
        "  to do:    repeat it",
    ]


def test_an_alphabet_without_the_letters_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.out("日本\ufffd")
    stream.flush()
    assert stream.buffer.getvalue() == b"???\n"  # type: ignore[attr-defined]


def test_what_libraries_and_threads_print_by_themselves_is_cleaned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(sys.stderr))
    terminal.guard()
    assert logging.lastResort is not None
    logging.lastResort.handle(logging.LogRecord("x", logging.ERROR, "x", 1, HOSTILE, None, None))
    lines = _said(capsys)
    assert lines[0].startswith("log: ")
    _require_obeyed_by_nobody(lines)


WRONG = [
    (["validate", "\n::error::told\x1b[31m##vso[x].yaml"], 2),
    (["check", "x", "--prove=\\[/x]\n::error::told"], 2),
    (["exec", "x", "y", "--timeout", "\n::error::told\\[/x]", "z"], 2),
    (["\n::error::told\x1b[31m"], 2),
    (["status", "x", "\n::error::told"], 2),
    (["graph", str(ROOT / "topologies/one-node.yaml"), "--format", "\\[/x]\n::error::told"], 2),
    (["console", "\n::error::told\\[/x]", "x"], 2),
    (["report", "a", "--format"], 2),
]


def _status(words: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["testbed", *words])
    monkeypatch.setattr(error_exit, "guard", lambda: None)
    monkeypatch.setenv("TESTBED_STATE_DIR", str(folder))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")  # for which typer forces colours
    with pytest.raises(SystemExit) as caught:
        main.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize(("words", "status"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_command_line_is_quoted_and_obeyed_by_nobody(
    words: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _status(words, monkeypatch, tmp_path) == status
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).split("\n")
    assert any("told" in line or "requires an argument" in line or "valid number" in line for line in lines)
    _require_obeyed_by_nobody(lines)


def test_an_error_that_nothing_foresaw_is_no_open_wall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's own exit status would be 1, and its message would hold foreign text."""

    def fails(*_: object) -> None:
        raise ValueError(HOSTILE)

    monkeypatch.setattr(topology_files, "topology_of", fails)
    assert _status(["graph", "x"], monkeypatch, tmp_path) == 5
    shown = capsys.readouterr().err
    _require_obeyed_by_nobody(shown.split("\n"))
    assert "report this as a bug" in shown


def test_a_topology_neither_colours_nor_speaks() -> None:
    text = (
        f'version: 1\nname: {json.dumps(HOSTILE[:-1])}\nnodes: {{"a\\n::error::x": {{}}}}\ntenants: {{t: '
        '{allow: ["\\n::error::y"]}}'
    )
    with pytest.raises(TopologyError) as caught, terminal.ERR.capture() as said:
        load(text, "x\n::error::.yaml")
    with terminal.ERR.capture() as said:
        terminal.warn(str(caught.value))
    assert len(caught.value.mistakes) > 2
    _require_obeyed_by_nobody(said.get().split("\n"))


PRINTERS = {
    "testbed/cli/output/terminal.py": "the one place",
    "testbed/cli/output/display.py": "draws the live display for it",
    "testbed/report/columns.py": "measures text with rich, and prints nothing",
    "testbed/drivers/namespaces/init.py": "a program of its own; says one word to us",
    "testbed/drivers/images/build.py": "a program of its own; what it says is a fact of an error of ours",
    "testbed/drivers/snapshots/capture.py": (
        "a program of its own; what it says is a fact of an error of ours"
    ),
    "testbed/payload/attacks/exhaustion.py": "runs on nodes; writes to its parent, and fills logs",
    "testbed/payload/probe/main.py": "runs in guests and on machines; its answer is its output",
}


_PRINTING = {
    "print",
    "sys.stdout.write",
    "sys.stderr.write",
    "typer.echo",
    "typer.secho",
    "typer.style",
    "os.write",
    "warnings.warn",
}
_PRINTED = [
    "print(1)",
    "import rich.markup",
    "sys.stdout.write('x')",
    "typer.Typer()",
    "typer.Typer(rich_markup_mode='rich')",
]


def _prints(tree: ast.AST) -> list[str]:
    """Return the statements of a module that could show text.

    They print, write to our own streams, or use rich or its markup.
    """
    found = []
    for node in ast.walk(tree):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if name in _PRINTING:
            found.append(name)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "sys.stdout",
            "sys.stderr",
            "sys.__stdout__",
            "sys.__stderr__",
        ):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            found += [item for item in names if item.split(".")[0] in ("rich", "click")]
        if (
            isinstance(node, ast.keyword)
            and node.arg == "rich_markup_mode"
            and ast.unparse(node.value) != "None"
        ):
            found.append("rich_markup_mode")
        if name in ("typer.Typer", "Typer") and not any(
            item.arg == "rich_markup_mode" for item in node.keywords
        ):  # type: ignore[attr-defined]
            found.append("Typer with markup")
    return found


def test_nothing_is_printed_another_way() -> None:
    far = {
        "testbed/payload/exec_server.py",
        "testbed/payload/adoption/host_restore.py",
        "testbed/payload/adoption/host_state.py",
        "testbed/drivers/host/private_files.py",
        "testbed/drivers/places/volume_keys.py",
        "testbed/payload/inventory/base/collect.py",
        "testbed/payload/inventory/main.py",
        "testbed/payload/attacks/confinement.py",
        "testbed/payload/attacks/device_fuzz.py",
        "testbed/payload/attacks/helper_attacks.py",
        "testbed/payload/attacks/hostile_agent.py",
        "testbed/payload/attacks/worker_attacks.py",
        "testbed/payload/attacks/attempts.py",
        "testbed/payload/worker_objects.py",
        "testbed/payload/images/hostile_images.py",
        "testbed/payload/images/image_gate.py",
        "testbed/payload/images/taken_over.py",
        "testbed/untrusted/disk_changes.py",
    }  # these write to files by descriptors, or to a pipe that the tool reads
    for path in sorted((ROOT / "testbed").rglob("*.py")) + sorted((ROOT / "checks").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name not in PRINTERS and name not in far:
            assert _prints(ast.parse(path.read_text())) == [], name


def test_our_own_console_knows_no_markup() -> None:
    tree = ast.parse((ROOT / "testbed/cli/output/terminal.py").read_text())
    consoles = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Console"
    ]
    assert consoles
    assert all(
        {item.arg: ast.unparse(item.value) for item in node.keywords}.get("markup") == "False"
        for node in consoles
    )
    printed = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ERR.print", "console.print")
    ]
    assert printed
    assert all(ast.unparse(node.args[0]).startswith(("Text(", "Text.assemble(")) for node in printed)


@pytest.mark.parametrize("code", _PRINTED)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert _prints(ast.parse(code))
