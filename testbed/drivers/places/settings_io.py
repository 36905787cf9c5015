"""Settings of a machine, all observed by one command over ssh."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

from testbed.drivers.ssh.client import Host
from testbed.errors import ProvisioningError
from testbed.plan.host_config.settings import Setting
from testbed.plan.resources import Key, Kind, Properties

_LIMIT = 4000


def read_all(host: Host, commands: Iterable[str], timeout: float = 180) -> dict[str, str]:
    """Run shell commands as root, in one go and each of them once, and return what each printed, stripped.

    Raises:
        ProvisioningError: the machine does not answer, or not to every command.

    """
    token = secrets.token_hex(8)
    each = list(dict.fromkeys(commands))
    lines = [f"printf '\\n{token}\\n'\n( {command}\n ) 2>&1" for command in each]
    printed = host.must("\n".join((*lines, "true")), timeout=timeout).split(f"{token}\n")[1:]
    if len(printed) != len(each):
        fact = f"{len(printed)} of {len(each)} commands told something"
        raise ProvisioningError(f"{host.name} cannot be observed", fact=fact, remedy="run `testbed status`")
    return {command: text.strip() for command, text in zip(each, printed, strict=True)}


def observe(
    host: Host, place: str, wanted: Sequence[Setting], others: Sequence[str] = ()
) -> tuple[dict[Key, Properties], list[str]]:
    """Return the live value of every setting, and what other commands printed.

    Raises:
        ProvisioningError: the machine does not answer.

    """
    printed = read_all(host, [*(command for item in wanted for command in item.observe), *others])
    values = {item.name: item.reading(printed)[:_LIMIT] for item in wanted}
    found: dict[Key, Properties] = {
        Key(place, Kind.SETTING, name): {"value": value} for name, value in values.items()
    }
    return found, [printed[command] for command in others]


def repair_setting(host: Host, wanted: Sequence[Setting], name: str) -> None:
    """Restore one setting.

    Raises:
        ProvisioningError: its commands fail.

    """
    item = next((item for item in wanted if item.name == name), None)
    if item is None:
        raise ProvisioningError(
            f"there is no setting {name}", fact="the topology asks for none", remedy="report this as a bug"
        )
    host.must(item.repair)
