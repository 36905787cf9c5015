"""How a command ends: every error becomes a message on standard error and an exit code."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from pathlib import Path

import typer
from typer.exceptions import TyperException

from testbed.cli.output.terminal import fail, fail_inside, finish, guard, warn
from testbed.errors import Exit, ProvisioningError, TestbedError, UsageError

_PACKAGE = Path(__file__).parents[1]
_SPACE = "free space there (`df -h` shows where it is used), then run the command again"
_RIGHTS = "let this user write there, or name other folders (TESTBED_STATE_DIR, TESTBED_CACHE_DIR)"
_NAME = "use a shorter name, or a folder with a shorter path"
_FILES = "raise the limit of open files (`ulimit -n`), then run the command again"
_MEMORY = "free memory or end other processes, then run the command again"
_AGAIN = "run the command again; report it if it stays so"
_REMEDIES = {
    errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EFBIG: _SPACE, errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS, errno.EROFS: _RIGHTS,
    errno.ENAMETOOLONG: _NAME, errno.EMFILE: _FILES, errno.ENFILE: _FILES, errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _MEMORY,
}  # fmt: skip


def status_of(command: Callable[[], object]) -> int:
    """Run a command to its end and return its exit code.

    The codes of verdicts, 0, 1 and 3, are for verdicts: an accident is a 5 with its reason.

    Args:
        command: returns an exit code, or nothing.

    """
    guard()
    return finish(_status(command))


def _status(command: Callable[[], object]) -> int:
    try:
        code = command()
    except BaseException as error:  # noqa: BLE001 - its text may be a guest's, and Python would print it as it is and exit with 1
        return _ended(error)
    return code if isinstance(code, int) else Exit.OK


def _ended(error: BaseException) -> int:
    """Print why a command ended early, and return its exit code."""
    match error:
        case TestbedError():
            fail(error)
            code = int(error.exit_code)
        case TyperException():
            _tell_usage(error)
            code = error.exit_code
        case typer.Abort() | KeyboardInterrupt():
            warn("interrupted: the input has ended" if isinstance(error, typer.Abort) else "interrupted")
            code = Exit.INTERRUPTED
        case OSError() | MemoryError():
            fail(accident(error))
            code = Exit.PROVISIONING
        case SystemExit(code=None | 0):
            code = Exit.OK
        case _:
            fail_inside(error)
            code = Exit.PROVISIONING
    return code


def _tell_usage(error: TyperException) -> None:
    """Print what is wrong with the command line, or how it is used if there is none."""
    if type(error).__name__ == "NoArgsIsHelpError":
        warn(error.format_message())
        return
    command = getattr(getattr(error, "ctx", None), "command_path", "testbed")
    fail(
        UsageError("the command line is wrong", fact=error.format_message(), remedy=f"see `{command} --help`")
    )


def accident(error: OSError | MemoryError) -> TestbedError:
    """Return a refusal of the operating system as an error of three parts.

    It is no bug, and needs no traceback.
    """
    places = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_PACKAGE)
    ]
    at = (
        f" (in {Path(places[-1].filename).relative_to(_PACKAGE.parent)}, line {places[-1].lineno})"
        if places
        else ""
    )
    if isinstance(error, MemoryError):
        return ProvisioningError("the memory is used up", fact=f"an allocation failed{at}", remedy=_MEMORY)
    names = [str(name) for name in (error.filename, error.filename2) if name not in (None, "")]
    reason = error.strerror or str(error) or type(error).__name__
    fact = f"{' and '.join(names)}: {reason}{at}" if names else f"{reason}{at}"
    return ProvisioningError(
        "the system refused a step of the command", fact=fact, remedy=_REMEDIES.get(error.errno or 0, _AGAIN)
    )
