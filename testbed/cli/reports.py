"""The verb `report`: the result of the latest run, in each form."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from testbed.cli.context import Name, located, workspace_of
from testbed.cli.output.terminal import out, out_json, show, width
from testbed.drivers.host.workspace import Workspace
from testbed.errors import UsageError
from testbed.lab.breach_journal import Journal
from testbed.report import formats
from testbed.report.result import content_of
from testbed.report.sarif import sarif
from testbed.report.screen import verdicts

_FORMATS = {"markdown": formats.markdown, "junit": formats.junit}
_FORMS = ("text", *_FORMATS, "sarif", "json")


def report(
    name: Name,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="text, markdown, junit, sarif or json",
            envvar="TESTBED_REPORT",
            autocompletion=lambda: [*_FORMS],
        ),
    ] = "text",
    folder: Annotated[
        bool, typer.Option("--folder", help="print the folder of that run, and nothing else")
    ] = False,
) -> None:
    """Show the latest run's report in another form."""
    workspace = workspace_of(name)
    _require_finished(workspace)
    latest = workspace.latest_run()
    data = content_of((latest / "result.json").read_text())
    if folder:
        out(str(latest))
    elif form == "json":
        out_json(data, indent=1)
    elif form == "sarif":
        out(sarif(data, located(name, workspace, data), version=version("testbed")))
    elif form == "text":
        show(verdicts(data, width()))
    elif form in _FORMATS:
        out(_FORMATS[form](data))
    else:
        raise UsageError(
            f"cannot report as {form}",
            fact=f"known formats: {', '.join(_FORMS)}",
            remedy="use --format with one of these",
        )


def _require_finished(workspace: Workspace) -> None:
    """Refuse to show an older run while an interrupted run without a result left a breach open.

    Raises:
        ProvisioningError: there is one.

    """
    journal = Journal(workspace)
    runs = [entry.record.run if entry.record else "" for entry in journal.entries()]
    if not all(run and (workspace.runs / run / "result.json").is_file() for run in runs):
        journal.require_closed()
