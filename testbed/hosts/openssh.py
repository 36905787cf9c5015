"""How OpenSSH's client is called for hosts of others.

It is the user's own, so that configuration, agent, jump hosts and known keys count.
"""

from __future__ import annotations

from pathlib import Path

from testbed.errors import UsageError

_CONNECT = 10  # seconds until a host has answered a connection


def require_host(host: str) -> None:
    """Refuse a name that ssh(1) would take for an option.

    Raises:
        UsageError: it is empty or an option.
    """
    if host.startswith("-") or not host.strip():
        raise UsageError(f"{host!r} is no host", fact="it is empty or an option", remedy="name hosts")


def argv(host: str, command: str, configuration: Path | None = None) -> list[str]:
    """Return the words of a call that asks no question and ends when the host no longer answers.

    Args:
        host: name or address as ssh(1) takes it.
        command: for the host's shell.
        configuration: file for ``ssh -F``; None for the user's own.
    """
    words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT}"]
    words += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    words += ["-F", str(configuration)] if configuration else []
    return [*words, "--", host, command]


def as_root(command: str) -> str:
    """Return a shell command that runs another one as root: by sudo, if the login is not root's.

    Args:
        command: simple, without quotation; Python's -I leaves out all that the environment could add.
    """
    return f'if [ "$(id -u)" = 0 ]; then exec {command}; else exec sudo -n {command}; fi'
