"""Generated pages of docs/reference/ are up to date with program, schema and checks."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import typer

from docs.tools import control_pages, topology_file
from docs.tools.catalogue import clauses, controls
from docs.tools.reference import PAGES, generated, main
from testbed.topology_file.schema import GuestSpec, LimitsSpec, NodeSpec, Spec, TenantSpec
from testbed.verify.check import ATTRIBUTE

FOLDER = Path(__file__).parents[3] / "docs/reference"


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    """After a change of verbs, keys, checks or docs/controls.md: script/reference."""
    assert (FOLDER / name).read_text() == generated(name), "run script/reference"


def test_a_page_that_differs_is_reported_and_then_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("docs.tools.reference.FOLDER", tmp_path)
    monkeypatch.setattr("docs.tools.reference.PAGES", {"a.md": lambda: "# A\n\n" + "word " * 50})
    assert main(["--check"]) == 1
    assert not (tmp_path / "a.md").exists()
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert max(map(len, (tmp_path / "a.md").read_text().splitlines())) <= 110
    (tmp_path / "a.md").write_text("edited by hand")
    assert main(["--check"]) == 1


def test_the_page_of_the_command_line_has_every_verb_and_option(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(help="A program.")
    inner = typer.Typer()

    @app.command()
    def first(word: str, loud: bool = typer.Option(False, "--loud", help="a | b", envvar="LOUD")) -> None:
        """Do it."""

    @inner.command("second")
    def other() -> None:
        """Do more."""

    app.add_typer(inner, name="group")
    monkeypatch.setattr("docs.tools.command_line.app", app)
    page = PAGES["command-line.md"]()
    assert "## testbed first\n\n`testbed first [OPTIONS] WORD`\n\nDo it." in page
    assert "| `--loud` | a \\| b |  | `LOUD` |" in page
    assert "## testbed group second" in page


def test_the_page_of_topology_files_has_every_key_with_its_limits() -> None:
    page = topology_file.page()
    for model in (Spec, NodeSpec, TenantSpec, GuestSpec, LimitsSpec):
        assert all(f"| `{name}` |" in page for name in model.model_fields)
    assert "| `memory` | size | `224 MiB` | KiB, MiB, GiB | 128 MiB to 1024 GiB |" in page
    assert (
        "| `connections` | whole number | the tenant's, then `256` | connections | from 16; to 65536 |"
        in page
    )


def test_a_type_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no words for"):
        topology_file.kind_of(complex, ())


def test_the_page_of_controls_has_every_breach() -> None:
    page = control_pages.page()
    every = control_pages.checks()
    assert len(every) > 30
    for check in every:
        assert f"**{check.declared.objective}**" in " ".join(page.split())
        assert all(f"- breach: {breach.name}" in page for breach in check.declared.breaches)
        module = import_module("checks." + check.found.file.removesuffix(".py").replace("/", "."))
        assert getattr(getattr(module, check.found.function), ATTRIBUTE) is check.declared


def test_a_control_without_a_clause_that_exists_is_refused() -> None:
    head = "| S1 | claim |\n"
    assert clauses(head) == {"S1": "claim"}
    assert controls(head + "| NET-01 | threat | look | S1 |")["NET-01"].observation == "look"
    for rows in ("| NET-01 | threat | S2 |", "| NET-01 | a | S1 |\n| NET-01 | b | S1 |"):
        with pytest.raises(ValueError, match="NET-01"):
            controls(head + rows)
