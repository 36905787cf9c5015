"""Attacks a lab's walls from the command line: runs the checks, prints the result, chooses the exit code."""

from __future__ import annotations

import json

import typer

from testbed.cli.terminal import out, out_json, say
from testbed.errors import Exit, InstrumentError, TestbedError
from testbed.lab import session
from testbed.lab.breach_journal import Journal
from testbed.lab.guest_recovery import revive
from testbed.report import formats
from testbed.report.result import content_of, exit_code
from testbed.verify.runner.proof_cache import Proving


def check_walls(
    opened: session.Lab, *, prove: Proving, only: list[str], as_json: bool, slow: bool = False
) -> None:
    """Run the checks, and end with the exit code of their result; an error of ours is neither 0 nor a
    fail.
    """
    try:
        code = _checked(opened, prove=prove, only=only, as_json=as_json, slow=slow)
    except KeyboardInterrupt:
        say(f"interrupted; what had been observed: `testbed report {opened.testbed.name}`")
        for entry in Journal(opened.workspace).entries():
            say(f"still open, perhaps: {entry}; `testbed up {opened.testbed.name}` closes it")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except TestbedError:
        raise
    except (Exception, SystemExit) as error:
        fact = f"{type(error).__name__}: {error}"[:500]
        remedy = "repeat them; report it if it stays so"
        raise InstrumentError("the checks did not run to their end", fact=fact, remedy=remedy) from error
    if code is not Exit.OK:
        raise typer.Exit(code)


def _checked(opened: session.Lab, *, prove: Proving, only: list[str], as_json: bool, slow: bool) -> Exit:
    from testbed.verify.runner import run as runs  # noqa: PLC0415 - scapy and pytest are a fifth of a second

    folder = runs.examine(
        opened, prove=prove, only=tuple(only), progress=say, slow=slow, revive=lambda: revive(opened, say)
    )
    data = content_of((folder / "result.json").read_text())
    (folder / "report.md").write_text(formats.markdown(data))
    (folder / "junit.xml").write_text(formats.junit(data))
    if as_json:
        out_json(data, indent=1)
    else:
        matrix = folder / "matrix.json"
        reach = formats.matrix(json.loads(matrix.read_text())) if matrix.is_file() else ""
        out(f"{reach}\n{formats.text(data)}" if reach else formats.text(data))
    say(f"report: {folder}/report.md (also junit.xml, result.json, matrix.json and the evidence)")
    return exit_code(data)
