"""Attacks a lab's walls from the command line: runs the checks, prints the result, chooses the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from testbed.cli.error_exit import accident
from testbed.cli.terminal import fail, out, out_json, say
from testbed.drivers.host.private_files import write_secret
from testbed.errors import Exit, ProvisioningError, TestbedError
from testbed.lab import session
from testbed.lab.breach_journal import Journal
from testbed.lab.guest_recovery import revive
from testbed.report import formats
from testbed.report.result import content_of, exit_code
from testbed.verify.runner.proof_cache import Proving


def check_walls(
    opened: session.Lab, *, prove: Proving, only: list[str], as_json: bool, slow: bool = False
) -> None:
    """Run the checks, and end with the exit code of their result; an error of ours gives 5."""
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
        raise _broken_off("the checks did not run to their end", error) from error
    if code is not Exit.OK:
        raise typer.Exit(code)


def _checked(opened: session.Lab, *, prove: Proving, only: list[str], as_json: bool, slow: bool) -> Exit:
    from testbed.verify.runner import run as runs  # noqa: PLC0415 - scapy and pytest are a fifth of a second

    folder = runs.examine(
        opened, prove=prove, only=tuple(only), progress=say, slow=slow, revive=lambda: revive(opened, say)
    )
    data = content_of((folder / "result.json").read_text())
    code = exit_code(data)
    try:
        _show(folder, data, as_json=as_json)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the verdict is there, and is not lost for a report
        fail(
            _broken_off(
                f"the checks have ended, and their report is not whole: {formats.headline(data)}", error
            )
        )
        return code or Exit.PROVISIONING
    return code


def _broken_off(what: str, error: BaseException) -> ProvisioningError:
    """Return an error of ours, or of the system, as one that ends the command."""
    refused = accident(error) if isinstance(error, OSError | MemoryError) else None
    fact = refused.fact if refused else f"{type(error).__name__}: {error}"[:500]
    return ProvisioningError(
        what, fact=fact, remedy=refused.remedy if refused else "repeat them; report it if it stays so"
    )


def _show(folder: Path, data: dict[str, Any], *, as_json: bool) -> None:
    """Print a result, and write it in its other forms."""
    for name, form in (("report.md", formats.markdown), ("junit.xml", formats.junit)):
        write_secret(folder / name, form(data).encode())
    if as_json:
        out_json(data, indent=1)
    else:
        matrix = folder / "matrix.json"
        reach = formats.matrix(json.loads(matrix.read_text())) if matrix.is_file() else ""
        out(f"{reach}\n{formats.text(data)}" if reach else formats.text(data))
    say(f"report: {folder}/report.md (also junit.xml, result.json, matrix.json and the evidence)")
