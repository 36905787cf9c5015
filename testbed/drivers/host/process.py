"""Runs programs on the outer machine; no other file imports subprocess.

Every run has a deadline. A failure is reported once, where it happened, with the end of the program's
own output and the command line to repeat it.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from testbed.drivers.host.private_files import USUAL_UMASK
from testbed.errors import MachineError, ProvisioningError, TestbedError

_TAIL = 1500
_SBIN = "/usr/sbin:/sbin"


def find(program: str) -> str | None:
    """Return the path of a program, from PATH, /usr/sbin or /sbin; None if it is not installed."""
    return shutil.which(program) or shutil.which(program, path=_SBIN)


def require(program: str, *, package: str) -> str:
    """Return the path of a program.

    Raises:
        MachineError: it is not installed; the remedy names the Debian package.

    """
    found = find(program)
    if found is None:
        msg = f"the program {program} is missing"
        raise MachineError(msg, fact="it is nowhere in PATH", remedy=f"install the Debian package {package}")
    return found


def run(
    argv: Sequence[str],
    *,
    what: str,
    timeout: float,
    error: type[TestbedError] = ProvisioningError,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
) -> str:
    """Run a program to its end and return its standard output.

    Args:
        argv: program and arguments; no shell.
        what: summary of the error, such as "cannot bake the image node".
        timeout: seconds after which it is killed.
        error: class to raise.
        environment: variables to add to our own.
        log: file that receives both output streams instead; the result is then empty.
        cwd: folder to run in.
        stdin: standard input of the program; not used with a log.

    Raises:
        TestbedError: of the class given, when the program is missing, fails or takes too long.

    """
    env = {**os.environ, **(environment or {})}
    env["PATH"] = f"{env.get('PATH', os.defpath)}:{_SBIN}"  # an ordinary user's login leaves it out
    try:
        if log is not None:
            with log.open("ab") as stream:
                done = subprocess.run(
                    argv,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                    env=env,
                    check=False,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    umask=USUAL_UMASK,
                )
        else:
            done = subprocess.run(
                argv, capture_output=True, timeout=timeout, env=env, check=False, cwd=cwd, input=stdin,
                umask=USUAL_UMASK,
            )  # fmt: skip
    except OSError as failure:
        raise error(what, fact=f"{argv[0]}: {failure.strerror}", remedy=_repeat(argv)) from failure
    except subprocess.TimeoutExpired as failure:
        raise error(
            what, fact=f"{argv[0]} took longer than {timeout:.0f} s", remedy=_repeat(argv)
        ) from failure
    if done.returncode != 0:
        output = (
            _tail(log) if log is not None else (done.stderr or done.stdout)[-_TAIL:].decode(errors="replace")
        )
        fact = f"{argv[0]} ended with status {done.returncode}: {output.strip()[-_TAIL:] or 'no output'}"
        raise error(what, fact=fact, remedy=_repeat(argv, log))
    return "" if log is not None else done.stdout.decode(errors="replace")


def run_bounded(
    argv: Sequence[str],
    *,
    what: str,
    timeout: float,
    limit: int,
    error: type[TestbedError] = ProvisioningError,
    stdin: bytes = b"",
) -> str:
    """Run a program whose output another machine decides, and return its standard output.

    Args:
        argv: program and arguments; no shell.
        what: summary of the error.
        timeout: seconds after which it is killed.
        limit: octets that it may write; a signal ends it when it writes more (setrlimit(2), RLIMIT_FSIZE).
        error: class to raise.
        stdin: standard input of the program.

    Raises:
        TestbedError: of the class given, when the program is missing, fails, or exceeds time or limit.

    """
    with TemporaryFile() as output:
        run_into(output, argv, what=what, timeout=timeout, limit=limit, error=error, stdin=stdin)
        output.seek(0)
        return output.read(limit).decode(errors="replace")


def run_into(
    output: IO[bytes],
    argv: Sequence[str],
    *,
    what: str,
    timeout: float,
    limit: int,
    error: type[TestbedError] = ProvisioningError,
    stdin: bytes = b"",
) -> None:
    """Run a program whose output another machine decides; a file receives its standard output.

    Args:
        output: the file.
        argv: program and arguments; no shell.
        what: summary of the error.
        timeout: seconds after which it is killed.
        limit: octets that it may write; a signal ends it when it writes more (setrlimit(2), RLIMIT_FSIZE).
        error: class to raise.
        stdin: standard input of the program.

    Raises:
        TestbedError: of the class given, when the program is missing, fails, or exceeds time or limit.

    """
    bounded = [require("prlimit", package="util-linux"), f"--fsize={limit}", *argv]
    with TemporaryFile() as errors:
        try:
            done = subprocess.run(
                bounded, stdout=output, stderr=errors, timeout=timeout, check=False, input=stdin,
                umask=USUAL_UMASK,
            )  # fmt: skip
        except subprocess.TimeoutExpired as failure:
            fact = f"{argv[0]} took longer than {timeout:.0f} s"
            raise error(what, fact=fact, remedy=_repeat(argv)) from failure
        errors.seek(0)
        if done.returncode != 0:
            told = errors.read(limit)[-_TAIL:].decode(errors="replace").strip() or "no output"
            fact = f"{argv[0]} ended with status {done.returncode}: {told}"
            raise error(what, fact=fact, remedy=_repeat(argv))


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL))
        return stream.read().decode(errors="replace")


def _repeat(argv: Sequence[str], log: Path | None = None) -> str:
    command = shlex.join(argv)
    shown = command if len(command) < 400 else command[:400] + " …"
    read = f"read {log}, then " if log is not None else ""
    return f"{read}repeat it by hand: {shown}"


def spawn(argv: Sequence[str], *, log: Path, timeout: float) -> str:
    """Start a program that outlives this process and return its first line of output.

    The program runs in a session of its own.

    Args:
        argv: program and arguments.
        log: file that receives its standard error.
        timeout: seconds to wait for that line; the result is empty if it does not come.

    """
    with log.open("wb") as stream:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            start_new_session=True,
            cwd="/",
            umask=USUAL_UMASK,
        )
    assert child.stdout is not None
    with child.stdout as output:
        line = output.readline() if wait_readable(output.fileno(), timeout=timeout) else b""
    return line.decode(errors="replace").strip()


@contextmanager
def held(argv: Sequence[str], *, what: str, timeout: float) -> Iterator[int]:
    """Run a program during the block and yield its process id.

    The program must end when its standard input is closed: this happens when the block or this process ends.

    Args:
        argv: program and arguments.
        what: summary of the error.
        timeout: seconds to wait for ``ready`` on its standard output, and seconds to wait for its end; after
            that it is killed.

    Raises:
        ProvisioningError: it prints another line, or none in time.

    """
    child = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, umask=USUAL_UMASK
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with child.stdin, child.stdout:
            line = child.stdout.readline() if wait_readable(child.stdout.fileno(), timeout=timeout) else b""
            if line.strip() != b"ready":
                fact = (
                    line.decode(errors="replace").strip() or f"{argv[0]} says nothing within {timeout:.0f} s"
                )
                raise ProvisioningError(what, fact=fact, remedy=_repeat(argv))
            yield child.pid
    finally:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout)
        if child.poll() is None:
            child.kill()
            child.wait()


def wait_readable(descriptor: int, *, timeout: float) -> bool:
    """Wait until a descriptor (pipe, socket, pidfd) is readable; False after the timeout.

    Args:
        timeout: seconds.

    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def as_root(*more: str) -> list[str]:
    """Return the command prefix that runs a program as uid 0 in a new mount namespace.

    Args:
        more: further options of unshare(1).

    """
    unshare = require("unshare", package="util-linux")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    return [unshare, *user, "--mount", *more, "--propagation", "private"]
