"""Run the checks of a lab from the command line, print the result, choose the exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer

from testbed.cli.invocation.error_exit import accident
from testbed.cli.output.terminal import displayed, fail, out_json, say, show, width
from testbed.drivers.host.private_files import write_secret
from testbed.errors import Exit, ProvisioningError, TestbedError, UsageError
from testbed.lab import session
from testbed.lab.breach_journal import Journal
from testbed.lab.guest_recovery import restart_crashed_guests
from testbed.report import formats
from testbed.report.columns import Line
from testbed.report.reach import matrices
from testbed.report.result import content_of, exit_code
from testbed.report.screen import verdicts
from testbed.verify.runner.proof_cache import ALL_CASES, Part, Proving

_SUMMARY = 200_000  # octets; GitHub takes 1 MiB for a step, and other programs of the step may write as well


def check_walls(
    opened: session.Lab,
    *,
    prove: Proving,
    only: list[str],
    as_json: bool,
    part: Part = ALL_CASES,
    slow: bool = False,
    whole: bool = False,
) -> None:
    """Run the checks, and end with the exit code of their result.

    An error of the tool is no verdict: it gives 5.

    Raises:
        UsageError: a part of the proofs is asked for, and no proof.
    """
    if part != ALL_CASES and prove is Proving.NOTHING:
        raise UsageError(
            f"--part {part} chooses breaches, and none is tried",
            fact="--prove was not given",
            remedy="add --prove",
        )
    try:
        code = _checked(opened, prove=prove, part=part, only=only, as_json=as_json, slow=slow, whole=whole)
    except KeyboardInterrupt:
        say(f"interrupted; what had been observed: `testbed report {opened.topology.name}`")
        for entry in Journal(opened.workspace).entries():
            say(f"still open, perhaps: {entry}; `testbed up {opened.topology.name}` closes it")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except TestbedError:
        raise
    except (Exception, SystemExit) as error:
        raise _broken_off("the checks did not run to their end", error) from error
    if code is not Exit.OK:
        raise typer.Exit(code)


def _checked(
    opened: session.Lab,
    *,
    prove: Proving,
    part: Part,
    only: list[str],
    as_json: bool,
    slow: bool,
    whole: bool,
) -> Exit:
    from testbed.verify.runner import run as runs  # noqa: PLC0415 - scapy and pytest are a fifth of a second

    with displayed("check"):
        folder = runs.examine(
            opened,
            prove=prove,
            part=part,
            only=tuple(only),
            progress=say,
            slow=slow,
            whole=whole,
            revive=lambda: restart_crashed_guests(opened, say),
        )
    data = content_of((folder / "result.json").read_text())
    code = exit_code(data)
    try:
        _show(folder, data, as_json=as_json)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a report that fails loses no verdict
        fail(
            _broken_off(
                f"the checks have ended, and their report is not whole: {formats.headline(data)}", error
            )
        )
        return code or Exit.PROVISIONING
    return code


def _broken_off(what: str, error: BaseException) -> ProvisioningError:
    """Return an error of the tool or of the system as one that ends the command."""
    refused = accident(error) if isinstance(error, OSError | MemoryError) else None
    fact = refused.fact if refused else f"{type(error).__name__}: {error}"[:500]
    return ProvisioningError(
        what, fact=fact, remedy=refused.remedy if refused else "repeat them; report it if it stays so"
    )


def _show(folder: Path, data: dict[str, Any], *, as_json: bool) -> None:
    """Write a result in its other forms, and print it."""
    report = formats.markdown(data)
    for name, text in (("report.md", report), ("junit.xml", formats.junit(data))):
        write_secret(folder / name, text.encode())
    summarize(report)
    if as_json:
        out_json(data, indent=1)
    else:
        file = folder / "matrix.json"
        reached = matrices(json.loads(file.read_text()), width()) if file.is_file() else []
        show([*reached, *([Line("")] if reached else []), *verdicts(data, width())])
    say(f"report: {folder}/report.md (also junit.xml, result.json, matrix.json and the evidence)")


def summarize(report: str) -> None:
    """Add a report to the step summary of the CI job, if there is one (GITHUB_STEP_SUMMARY).

    A summary that cannot be written changes no verdict.
    """
    if file := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(file).open("a", encoding="utf-8") as opened:
                opened.write(formats.bounded(report, _SUMMARY))
        except (OSError, ValueError) as error:
            say(f"no step summary: {file}: {error}")
