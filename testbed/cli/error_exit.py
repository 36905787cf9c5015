"""How a command ends: every error becomes a message on standard error and an exit code."""

from __future__ import annotations

from collections.abc import Callable

import typer
from typer.exceptions import TyperException

from testbed.cli.terminal import fail, fail_inside, guard, warn
from testbed.errors import Exit, TestbedError, UsageError


def status_of(command: Callable[[], object]) -> int:
    """Run a command to its end and return its exit code.

    Args:
        command: returns an exit code, or nothing.

    """
    guard()
    try:
        code = command()
    except TestbedError as error:
        fail(error)
        return error.exit_code
    except TyperException as error:
        _tell_usage(error)
        return error.exit_code
    except typer.Abort:
        warn("interrupted: the input has ended")
        return Exit.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - its text may be a guest's, and Python would print it as it is and exit with 1
        fail_inside(error)
        return Exit.PROVISIONING
    return code if isinstance(code, int) else Exit.OK


def _tell_usage(error: TyperException) -> None:
    """Print what is wrong with the command line, or how it is used if there is none."""
    if type(error).__name__ == "NoArgsIsHelpError":
        warn(error.format_message())
        return
    command = getattr(getattr(error, "ctx", None), "command_path", "testbed")
    fail(
        UsageError("the command line is wrong", fact=error.format_message(), remedy=f"see `{command} --help`")
    )
