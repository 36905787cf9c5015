"""One observation that the checks of the virtual switch read together: what guests may send, and what they
must not.

A guest of the lab needs seconds to start a program, so what can be sent in one go is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop

from checks.support.attacker_positions import Scene, scenes
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
    """What became of everything that guests sent.

    Args:
        probes: by mark, everything that was sent besides the controls of `observe`.

    """

    observation: Observation
    probes: dict[str, Probe]
    forgeries: list[Forgery]

    def require_agreement(self, control: str) -> None:
        """Return if every guest told of what its node handed to it of honest frames and of what a control is
        about.

        Raises:
            InstrumentError: one did not.

        """
        others = {lie.mark for lie in self.forgeries if lie.control != control}
        marks = [
            mark
            for mark in self.probes
            if mark not in others and (control == "NET-01" or not mark.startswith(CELL))
        ]
        tap_witness.require_agreement(self.observation, marks)


def survey(fleet: Fleet) -> Survey:
    """Return this phase's observation.

    Raises:
        InstrumentError: it was not complete, or honest frames did not arrive before and after the false ones.

    """
    return fleet.once("survey", lambda: _survey(fleet))


def _survey(fleet: Fleet) -> Survey:
    lies, stages = [lie for lie in forgeries(fleet) if fleet.about(lie.control)], scenes(fleet)
    trusted = {
        (scene.number, stage): honest(scene, stage) for scene in stages if scene.protocol for stage in _STAGES
    }
    probes = matrix_probes(fleet.matrix.cells) if fleet.about("NET-01") else []
    for scene in stages:
        own = (lie.probe for lie in lies if lie.sender == scene.sender)
        before, after = (trusted.get((scene.number, stage), []) for stage in _STAGES)
        greed = thefts(scene) if fleet.about("NET-06") else []
        crowd = [flood(scene)] if fleet.about("NET-11") else []
        probes += [*before, *own, *greed, *crowd, *after]
    observation = observe(fleet, probes, doubts=True)
    peers = {scene.number: scene.peer for scene in stages}
    for (number, stage), sent in trusted.items():
        for probe in sent:
            if not observation.arrived(probe.mark, peers[number].guest):
                what = (
                    f"an honest frame from {probe.sender.guest} to {peers[number].guest} did not arrive "
                    f"{stage} the forged ones"
                )
                raise InstrumentError(what, fact=f"the frame {probe.mark}", remedy="repeat the check")
    return Survey(observation, {probe.mark: probe for probe in probes}, lies)


def honest(scene: Scene, stage: str) -> list[Probe]:
    """Return the frames that the forged ones differ from in one thing each."""
    packet = framed(scene.link, scene.ip(), scene.body())
    reply = framed(scene.link, frames.arp_reply(scene.sender.mac, str(scene.sender.address), scene.peer))
    kinds = {"first": packet, "arp": reply}
    if scene.sender.address6 and scene.peer.address6:
        told = frames.neighbor_advertisement(str(scene.sender.address6), scene.sender.mac, solicited_=1)
        kinds["na"] = framed(scene.link, scene.six(hops=255), told, tail=frames.nd_option)
        for name, headers in {"": (), "hop": (IPv6ExtHdrHopByHop(),), "dst": (IPv6ExtHdrDestOpt(),)}.items():
            kinds[f"six{name}"] = framed(scene.link, scene.six(), *headers, scene.body6())
    return [
        Probe(f"{kind}{scene.number}{stage}", scene.sender, {"repeat": 2}, frame)
        for kind, frame in kinds.items()
    ]


def judge(fleet: Fleet, control: str) -> list[str]:
    """Return what speaks against a wall that forged frames must not pass, by packets, pipeline and databases.

    Raises:
        InstrumentError: one of the witnesses did not see.

    """
    found = survey(fleet)
    pipeline = fleet.once(
        "pipeline", lambda: virtual_switch.pipeline(fleet, [lie.probe for lie in found.forgeries])
    )
    labels = virtual_switch.against(fleet.once("labels", lambda: virtual_switch.logical(fleet)), control)
    lies = [lie for lie in found.forgeries if lie.control == control]
    if not lies:
        raise InstrumentError(
            f"nothing was sent for {control}", fact="no guest has a frame of that kind", remedy="report it"
        )
    against = [
        *chain.from_iterable(_testimony(lie, found.observation, pipeline[lie.mark], labels) for lie in lies),
        *labels,
    ]
    if not against:
        found.require_agreement(control)
    return against


def _testimony(lie: Forgery, observation: Observation, actions: str, labels: list[str]) -> list[str]:
    """Return what a forged frame came to, and where witnesses disagree about it."""
    expected = (
        {lie.through, lie.sender.guest} if lie.through else set()
    )  # where a flow leads, and whom its target answers
    seen = [text for guest, text in observation.arrivals(lie.mark).items() if guest not in expected]
    passes = virtual_switch.passes(actions) and not lie.through
    if seen:
        name = "" if passes or labels else "label without wall: "
        return [f"{name}{lie} arrived at {', '.join(seen)}"]
    return (
        [f"wall without label: {lie} passes its own node ({actions[:80]}), and something behind stops it"]
        if passes
        else []
    )


def stolen(fleet: Fleet, transactions: tuple[int, ...]) -> list[str]:
    """Return what DHCP handed out to guests that asked with a false identity, besides their own address
    (NET-06).

    Raises:
        InstrumentError: DHCP or DHCPv6 answered none of them.

    """
    found, everyone = survey(fleet), endpoints(fleet.testbed)
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
    """Return frames that guests saw and that were not for them: other tenants', or with another's MAC address
    (NET-11).
    """
    found, macs = (
        survey(fleet),
        {guest.label: {nic.mac for nic in guest.nics} for guest in fleet.testbed.guests},
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
    """Tell whether a MAC address is that of a group, broadcast included (IEEE 802); a guest's answer may be
    anything.
    """
    return mac[1:2] in tuple("13579bdf")
