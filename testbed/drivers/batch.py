"""Settings of a machine, all observed by one command over ssh."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterable, Mapping, Sequence

from testbed.drivers.ssh import Host
from testbed.errors import ProvisioningError
from testbed.plan.resources import Key, Kind, Properties
from testbed.plan.settings import Setting

_LIMIT = 4000


def read_all(host: Host, commands: Iterable[tuple[str, str]], timeout: float = 180) -> dict[str, str]:
    """Run named shell commands as root, in one go, and return what each printed, stripped.

    Raises:
        ProvisioningError: the machine does not answer.

    """
    token = secrets.token_hex(8)
    lines = [f"printf '\\n{token} %s\\n' {shlex.quote(name)}\n( {command}\n ) 2>&1" for name, command in commands]
    output = host.must("\n".join((*lines, "true")), timeout=timeout)
    found: dict[str, str] = {}
    for part in output.split(f"{token} ")[1:]:
        name, _, value = part.partition("\n")
        found[name] = value.strip()[:_LIMIT]
    return found


def observe_settings(host: Host, place: str, wanted: Sequence[Setting]) -> dict[Key, Properties]:
    """Return the live value of every setting."""
    return as_settings(place, read_all(host, [(item.name, item.observe) for item in wanted]))


def as_settings(place: str, values: Mapping[str, str]) -> dict[Key, Properties]:
    """Return values by name as what `observe` of a place tells."""
    return {Key(place, Kind.SETTING, name): {"value": value} for name, value in values.items()}


def repair_setting(host: Host, wanted: Sequence[Setting], name: str) -> None:
    """Restore one setting.

    Raises:
        ProvisioningError: its commands fail.

    """
    item = next((item for item in wanted if item.name == name), None)
    if item is None:
        raise ProvisioningError(f"there is no setting {name}", fact="the topology asks for none", remedy="report this as a bug")
    host.must(item.repair)
