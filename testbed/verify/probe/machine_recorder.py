"""Recorders on nodes and the controller, and probes from guests while they listen (NET-09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testbed.model.topology import Guest
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.probe.client import (
    BUDGET,
    Probe,
    ProbeClient,
    Record,
    everywhere,
    inconclusive,
    lines,
    listed,
    on_machine,
    require_receiver,
    require_sent,
    results_of,
    wait_out,
)
from testbed.verify.probe.requests import Finish, Listen, Request, Send
from testbed.verify.probe.tokens import Tokens


def listen_on(fleet: Fleet, machine: MachineView, prefix: str, macs: Mapping[str, str]) -> None:
    """Start a recorder on some interfaces of a machine.

    Args:
        macs: MAC address by interface name.

    Raises:
        InstrumentError: it does not start.
    """
    nics = [{"label": name, "mac": mac, "address": "0.0.0.0"} for name, mac in macs.items()]  # noqa: S104 - no socket binds to it
    answer = on_machine(fleet, machine).listen(
        Listen(phase="listen", token=prefix, interfaces=nics, patience=0)
    )
    missing = [nic.get("label") for nic in listed(answer, "interfaces") if not nic.get("interface")]
    if answer.get("ready") is not True or missing:
        raise inconclusive(f"{machine.name} cannot listen", f"{answer.get('error', '')} {missing}")


def collect_from(fleet: Fleet, machine: MachineView, prefix: str, may_be_down: str) -> list[Record]:
    """End a machine's recorder and return its records.

    Args:
        may_be_down: the one interface that need not be up; a wall keeps it down.

    Raises:
        InstrumentError: it did not run for the whole window, or lost frames.
    """
    answer = on_machine(fleet, machine).ask(Finish(phase="finish", token=prefix))
    require_receiver(machine.name, answer, down=[may_be_down] if answer.get("down") else [])
    return listed(answer, "records")


def send_from(fleet: Fleet, guests: Sequence[Guest], tokens: Tokens, probes: Sequence[Probe]) -> None:
    """Send probes from guests, then wait for the end of the window.

    Raises:
        InstrumentError: a probe could not be sent.
    """
    requests: dict[str, Request] = {}
    for guest in guests:
        script = lines([probe for probe in probes if probe.sender.guest == guest.label], tokens)
        requests[guest.label] = Send(phase="send", budget=BUDGET, probes=script)
    sent = everywhere(fleet, guests, ProbeClient.ask, requests)
    require_sent(probes, results_of(sent))
    wait_out()
