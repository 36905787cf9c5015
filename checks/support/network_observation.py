"""One observation of allowed and forbidden frames, shared by the virtual switch's checks.

A guest of the lab needs seconds to start a program, so all frames are sent in one run of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop

from checks.support.attacker_positions import Position, positions
from checks.support.spoofed_frames import Forgery, flood, forgeries, thefts
from testbed.errors import InstrumentError
from testbed.model.reachability import endpoints
from testbed.verify.fleet import Fleet
from testbed.verify.observation import tap_witness
from testbed.verify.observation.arrivals import CELL, Observation, matrix_probes
from testbed.verify.observation.observe import observe
from testbed.verify.probe import frames
from testbed.verify.probe.client import Probe
from testbed.verify.probe.frames import framed
from testbed.verify.witnesses import virtual_switch

_STAGES = ("before", "after")


@dataclass(frozen=True, slots=True)
class Survey:
    """The result of all frames that guests sent.

    Args:
        probes: by mark, everything that was sent besides the controls of `observe`.
    """

    observation: Observation
    probes: dict[str, Probe]
    forgeries: list[Forgery]

    def require_agreement(self, control: str) -> None:
        """Require that guests recorded a control's frames, where their nodes recorded them.

        These are frames with true addresses, and the forgeries of the control.

        Raises:
            InstrumentError: a guest did not.
        """
        others = {forgery.mark for forgery in self.forgeries if forgery.control != control}
        marks = [
            mark
            for mark in self.probes
            if mark not in others and (control == "NET-01" or not mark.startswith(CELL))
        ]
        tap_witness.require_agreement(self.observation, marks)


def survey(fleet: Fleet) -> Survey:
    """Return this phase's observation.

    Raises:
        InstrumentError: it was not complete, or true frames did not arrive before and after the forged
            ones.
    """
    return fleet.observe_once("survey", lambda: _survey(fleet))


def _survey(fleet: Fleet) -> Survey:
    forged, all_positions = (
        [forgery for forgery in forgeries(fleet) if fleet.needs(forgery.control)],
        positions(fleet),
    )
    trusted = {
        (position.number, stage): control_frames(position, stage)
        for position in all_positions
        if position.protocol
        for stage in _STAGES
    }
    probes = matrix_probes(fleet.matrix.cells) if fleet.needs("NET-01") else []
    for position in all_positions:
        own = (forgery.probe for forgery in forged if forgery.sender == position.sender)
        before, after = (trusted.get((position.number, stage), []) for stage in _STAGES)
        lease_requests = thefts(position) if fleet.needs("NET-06") else []
        mac_flood = [flood(position)] if fleet.needs("NET-11") else []
        probes += [*before, *own, *lease_requests, *mac_flood, *after]
    observation = observe(fleet, probes, doubts=True)
    peers = {position.number: position.peer for position in all_positions}
    for (number, stage), sent in trusted.items():
        for probe in sent:
            if not observation.arrived(probe.mark, peers[number].guest):
                what = (
                    f"an honest frame from {probe.sender.guest} to {peers[number].guest} did not arrive "
                    f"{stage} the forged ones"
                )
                raise InstrumentError(what, fact=f"the frame {probe.mark}", remedy="repeat the check")
    return Survey(observation, {probe.mark: probe for probe in probes}, forged)


def control_frames(position: Position, stage: str) -> list[Probe]:
    """Return frames with true content; each forgery differs from one of them in one property."""
    packet = framed(position.link, position.ip(), position.body())
    reply = framed(
        position.link, frames.arp_reply(position.sender.mac, str(position.sender.address), position.peer)
    )
    kinds = {"first": packet, "arp": reply}
    if position.sender.address6 and position.peer.address6:
        told = frames.neighbor_advertisement(str(position.sender.address6), position.sender.mac, solicited_=1)
        kinds["na"] = framed(position.link, position.six(hops=255), told, tail=frames.nd_option)
        for name, headers in {"": (), "hop": (IPv6ExtHdrHopByHop(),), "dst": (IPv6ExtHdrDestOpt(),)}.items():
            kinds[f"six{name}"] = framed(position.link, position.six(), *headers, position.body6())
    return [
        Probe(f"{kind}{position.number}{stage}", position.sender, {"repeat": 2}, frame)
        for kind, frame in kinds.items()
    ]


def judge(fleet: Fleet, control: str) -> list[str]:
    """Return the evidence against a wall that must stop forged frames.

    The witnesses are packets, the pipeline of the sender's node, and the databases.

    Raises:
        InstrumentError: a witness could not observe.
    """
    found = survey(fleet)
    pipeline = fleet.observe_once(
        "pipeline", lambda: virtual_switch.pipeline(fleet, [forgery.probe for forgery in found.forgeries])
    )
    labels = virtual_switch.against(
        fleet.observe_once("labels", lambda: virtual_switch.logical(fleet)), control
    )
    forged = [forgery for forgery in found.forgeries if forgery.control == control]
    if not forged:
        raise InstrumentError(
            f"nothing was sent for {control}", fact="no guest has a frame of that kind", remedy="report it"
        )
    against = [
        *chain.from_iterable(
            _testimony(forgery, found.observation, pipeline[forgery.mark], labels) for forgery in forged
        ),
        *labels,
    ]
    if not against:
        found.require_agreement(control)
    return against


def _testimony(forgery: Forgery, observation: Observation, actions: str, labels: list[str]) -> list[str]:
    """Return the evidence from one forgery, and the disagreements of its witnesses."""
    expected = (
        {forgery.through, forgery.sender.guest} if forgery.through else set()
    )  # the target of a flow, and the sender, to which the target answers
    seen = [text for guest, text in observation.arrivals(forgery.mark).items() if guest not in expected]
    passes = virtual_switch.passes(actions) and not forgery.through
    if seen:
        name = "" if passes or labels else "label without wall: "
        return [f"{name}{forgery} arrived at {', '.join(seen)}"]
    return (
        [f"wall without label: {forgery} passes its own node ({actions[:80]}), and something behind stops it"]
        if passes
        else []
    )


def stolen(fleet: Fleet, transactions: tuple[int, ...]) -> list[str]:
    """Return foreign addresses that DHCP offered to guests with a false identity (NET-06).

    Raises:
        InstrumentError: DHCP or DHCPv6 answered none of them.
    """
    found, everyone = survey(fleet), endpoints(fleet.topology)
    starts = tuple(f"{number:02x}" for number in transactions)
    kinds = ["dhcp", "dhcp6"] if any(item.address6 for item in everyone) else ["dhcp"]
    answers = [
        (guest, record)
        for guest, records in found.observation.records.items()
        for record in records
        if record.get("kind") in kinds and str(record.get("token")).startswith(starts)
    ]
    silent = [kind for kind in kinds if kind not in {record.get("kind") for _, record in answers}]
    if silent:
        what = f"{' and '.join(silent)} answers no question with a false identity"
        raise InstrumentError(what, fact="nothing was handed out", remedy="repeat the check")
    own: dict[str, set[str]] = {}
    for item in everyone:
        own.setdefault(item.guest, set()).update((str(item.address), str(item.address6)))
    return sorted(
        {
            f"{guest} was offered {record.get('target')}"
            for guest, record in answers
            if record.get("target") not in own[guest]
        }
    )


def overheard(fleet: Fleet) -> list[str]:
    """Return received frames that were for other tenants or for another MAC address (NET-11)."""
    found, macs = (
        survey(fleet),
        {guest.label: {nic.mac for nic in guest.nics} for guest in fleet.topology.guests},
    )
    findings = set()
    for guest, records in found.observation.records.items():
        for record in records:
            mark = found.observation.tokens.mark_of(record.get("token"))
            probe, to = found.probes.get(mark), str(record.get("to", ""))
            if probe is not None and probe.sender.tenant != guest.partition("/")[0]:
                findings.add(f"{guest} saw {mark} of {probe.sender.label}")
            elif to and to not in macs[guest] and not _is_group(to):
                findings.add(f"{guest} saw a frame for {to}")
    if not findings:
        found.require_agreement("NET-11")
    return sorted(findings)


def _is_group(mac: str) -> bool:
    """Return whether a MAC address is a group's, broadcast included (IEEE 802).

    The text comes from a guest, and may be anything.
    """
    return mac[1:2] in tuple("13579bdf")
