"""Recorders on nodes and the controller, and what guests send while those listen (NET-09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testbed.model.topology import Guest
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.probe.client import (
    BUDGET,
    Instrument,
    Probe,
    Record,
    broken,
    everywhere,
    lines,
    listed,
    on_machine,
    require_receiver,
    require_sent,
    results_of,
    wait_out,
)
from testbed.verify.probe.tokens import Tokens


def listen_on(fleet: Fleet, machine: Machine, prefix: str, macs: Mapping[str, str]) -> None:
    """Start a recorder on some interfaces of a machine.

    Args:
        macs: MAC address by interface name.

    Raises:
        InstrumentError: it does not start.
    """
    nics = [{"label": name, "mac": mac, "address": "0.0.0.0"} for name, mac in macs.items()]  # noqa: S104 - not asked for
    answer = on_machine(fleet, machine).listen(
        {"phase": "listen", "token": prefix, "interfaces": nics, "patience": 0}
    )
    missing = [nic.get("label") for nic in listed(answer, "interfaces") if not nic.get("interface")]
    if answer.get("ready") is not True or missing:
        raise broken(f"{machine.name} cannot listen", f"{answer.get('error', '')} {missing}")


def collect_from(fleet: Fleet, machine: Machine, prefix: str, may_be_down: str) -> list[Record]:
    """End a machine's recorder and return what it saw.

    Args:
        may_be_down: the one interface that need not be up; a wall keeps it down.

    Raises:
        InstrumentError: it did not live through the window, or lost something.
    """
    answer = on_machine(fleet, machine).ask({"phase": "finish", "token": prefix})
    require_receiver(machine.name, answer, down=[may_be_down] if answer.get("down") else [])
    return listed(answer, "records")


def send_from(fleet: Fleet, guests: Sequence[Guest], tokens: Tokens, probes: Sequence[Probe]) -> None:
    """Send probes from guests, then wait the window out.

    Raises:
        InstrumentError: something could not be sent.
    """
    requests: dict[str, dict[str, object]] = {}
    for guest in guests:
        script = lines([probe for probe in probes if probe.sender.guest == guest.label], tokens)
        requests[guest.label] = {"phase": "send", "budget": BUDGET, "probes": script}
    sent = everywhere(fleet, guests, Instrument.ask, requests)
    require_sent(probes, results_of(sent))
    wait_out()
