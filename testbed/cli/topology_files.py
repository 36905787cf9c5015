"""The verbs that read topology files and touch no lab: `validate` and `graph`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.context import File, topology_of
from testbed.cli.output.terminal import Json, out, out_json, warn
from testbed.drivers.host import memory
from testbed.errors import Exit, TestbedError, TopologyError, UsageError
from testbed.model.resolve import resolve
from testbed.report import graph as graphs
from testbed.topology_file.loader import read
from testbed.topology_file.schema import json_schema


def validate(
    files: Annotated[list[Path], typer.Argument(help="topology files")] = [],  # noqa: B006 - typer wants a literal
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of topology files")] = False,
    as_json: Json = False,
) -> None:
    """Check topology files; every mistake is reported in one pass."""
    if schema:
        out_json(json_schema(), indent=1)
    elif not files:
        raise UsageError(
            "nothing to validate", fact="no file was named", remedy="name a topology file, or use --schema"
        )
    rows: list[dict[str, object]] = []
    for file in files:
        try:
            found = resolve(read(file, machine_memory=memory.total()).spec)
            counts = {"nodes": len(found.nodes), "tenants": len(found.tenants), "guests": len(found.guests)}
            rows.append({"file": str(file), "ok": True, "name": found.name, **counts, "mistakes": []})
            if not as_json:
                out(f"{file}: fine: {', '.join(f'{count} {name}' for name, count in counts.items())}")
        except TestbedError as error:
            # a hostile file has hundreds of thousands of mistakes: copies only for those who want them
            mistakes = _mistakes(error) if as_json else []
            rows.append({"file": str(file), "ok": False, "mistakes": mistakes})
            if not as_json:
                warn(str(error))
    if as_json and not schema:
        out_json(rows, indent=1)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(Exit.USAGE)


def _mistakes(error: TestbedError) -> list[dict[str, object]]:
    """Return the mistakes of a file, for programs."""
    if isinstance(error, TopologyError):
        return [asdict(mistake) for mistake in error.mistakes]
    return [{"line": None, "path": "", "fact": f"{error.what}: {error.fact}", "remedy": error.remedy}]


def graph(
    source: File,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="dot or mermaid",
            envvar="TESTBED_GRAPH",
            autocompletion=lambda: ["dot", "mermaid"],
        ),
    ] = "dot",
) -> None:
    """Draw a topology as DOT or Mermaid text."""
    topology, _ = topology_of(source)
    drawers = {"dot": graphs.dot, "mermaid": graphs.mermaid}
    if form not in drawers:
        raise UsageError(
            f"cannot draw as {form}",
            fact="known formats: dot, mermaid",
            remedy="use --format dot or --format mermaid",
        )
    out(drawers[form](topology))
