"""The verb that looks at hosts of others."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.output.terminal import Json, out_json, show
from testbed.errors import Exit
from testbed.hosts.controls import judge
from testbed.hosts.look import look
from testbed.report.columns import Line, table
from testbed.report.result import Verdict
from testbed.untrusted.text import line

app = typer.Typer(rich_markup_mode=None)

Configuration = Annotated[
    Path | None,
    typer.Option(
        "--ssh-config",
        "-F",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="configuration for ssh instead of your own",
        envvar="TESTBED_SSH_CONFIG",
    ),
]


@app.command()
def audit(
    hosts: Annotated[
        list[str], typer.Argument(help="hosts as ssh takes them", metavar="HOST", show_default=False)
    ],
    configuration: Configuration = None,
    as_json: Json = False,
) -> None:
    """Look at KVM hosts that others have set up, over ssh; change nothing on them."""
    found = [
        (
            item,
            judge(item.facts) if item.facts else [],
            line(f"{item.error.what}: {item.error.fact}") if item.error else "",
        )
        for item in look(hosts, configuration)
    ]
    if as_json:
        out_json(
            [
                {
                    "host": item.host,
                    "system": item.facts.system if item.facts else "",
                    "guests": len(item.facts.workers) if item.facts else 0,
                    "error": error,
                    "controls": [asdict(finding) for finding in findings],
                }
                for item, findings, error in found
            ],
            indent=1,
        )
    else:
        rows = [
            (line(item.host), finding.control, finding.verdict, line(finding.reason))
            for item, findings, _ in found
            for finding in findings
        ]
        rows += [(line(item.host), "", Verdict.INCONCLUSIVE, error) for item, _, error in found if error]
        show([Line(text) for text in table(("host", "control", "verdict", "reason"), sorted(rows))])
    verdicts = {finding.verdict for _, findings, _ in found for finding in findings}
    if Verdict.FAIL in verdicts:
        raise typer.Exit(Exit.FAIL)
    if Verdict.INCONCLUSIVE in verdicts or any(error for *_, error in found):
        raise typer.Exit(Exit.INCONCLUSIVE)
