"""Frames that receivers recorded, and the matrix cells that they decide. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from testbed.errors import InstrumentError
from testbed.model.reachability import LINK, RESOLUTION, TO_ALL, Cell, Endpoint
from testbed.untrusted.bounded_json import real, whole
from testbed.verify.observation import two_witnesses
from testbed.verify.probe.client import Probe, Record, inconclusive
from testbed.verify.probe.frames import of_cell
from testbed.verify.probe.tokens import Tokens

CELL = "cell"  # prefix of the marks of probes for matrix cells
TRUTH = "truth"  # prefix of the marks of unsolicited announcements between the ends of flows


@dataclass(frozen=True, slots=True)
class Observation:
    """Frames that the receivers recorded from a set of probes.

    Args:
        records: by guest, every frame of this run that counts as received, from either witness.
        answers: by mark, the answer that the sender received.
        strays: by guest, received frames without a token from MAC addresses of no guest.
        told: by guest, the records of its own recorder.
        seen: by guest, the records of its node's recorder, of frames going to it.
        doubt: why the guests' recorders cannot vouch for the whole window, if they cannot: then there is no
            pass.
    """

    tokens: Tokens
    records: Mapping[str, Sequence[Record]]
    answers: Mapping[str, str]
    strays: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    told: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    seen: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    doubt: InstrumentError | None = None

    @classmethod
    def compared(
        cls, tokens: Tokens, told: Mapping[str, Sequence[Record]], seen: Mapping[str, Sequence[Record]],
        answers: Mapping[str, str], strays: Mapping[str, Sequence[Record]], doubt: InstrumentError | None,
    ) -> Observation:  # fmt: skip
        """Return the observation that follows from two witnesses."""
        records = {guest: two_witnesses.counted(tokens, told[guest], seen.get(guest, [])) for guest in told}
        return cls(tokens, records, answers, strays, told, seen, doubt)

    def token(self, mark: str) -> str:
        """Return the token that a probe's frames carry."""
        return self.tokens.of(mark)

    def arrived(self, mark: str, guest: str) -> bool:
        """Return whether either witness recorded a probe's frame at a guest."""
        return two_witnesses.holds(self.records[guest], self.token(mark))

    def arrivals(self, mark: str) -> dict[str, str]:
        """Return the guests at which a probe's frame was recorded, and where witnesses differ."""
        return {guest: f"{guest}{self._word(mark, guest)}" for guest in self.sightings(mark)}

    def _word(self, mark: str, guest: str) -> str:
        told, seen = (
            two_witnesses.holds(records.get(guest, []), self.token(mark))
            for records in (self.told, self.seen)
        )
        return (
            ""
            if told == seen
            else " (which conceals it)"
            if seen
            else " (by a path that its node does not see)"
        )

    def concealed(self) -> dict[str, set[str]]:
        """Return by guest the marks of frames that only its node recorded."""
        return self._only(self.seen, self.told)

    def past(self) -> dict[str, set[str]]:
        """Return by guest the marks of frames that only the guest recorded.

        They did not come through the interfaces that its node watches.
        """
        return self._only(self.told, self.seen)

    def _only(
        self, one: Mapping[str, Sequence[Record]], other: Mapping[str, Sequence[Record]]
    ) -> dict[str, set[str]]:
        found = {
            guest: two_witnesses.only(self.tokens, one.get(guest, []), other.get(guest, []))
            for guest in self.records
        }
        return {guest: marks for guest, marks in found.items() if marks}

    def sightings(self, mark: str) -> list[str]:
        """Return the guests at which a probe's frame was recorded."""
        return [guest for guest in self.records if self.arrived(mark, guest)]

    def windows(self, mark: str) -> list[tuple[str, float, int]]:
        """Return guest, seconds from first to last sighting, and number of sightings of a probe.

        Raises:
            InstrumentError: a guest's recorder gives no numbers.
        """
        token = self.token(mark)
        try:
            return [
                (
                    guest,
                    real(record.get("until", 0)) - real(record.get("at", 0)),
                    whole(record.get("times", 1)),
                )
                for guest, records in self.records.items()
                for record in records
                if record.get("token") == token
            ]
        except ValueError as error:
            raise inconclusive("a recorder tells no numbers", str(error)) from error

    def resolved(self, source: Endpoint, target: Endpoint, protocol: str = "arp") -> bool:
        """Return whether a request for a target's address reached it, or was answered in its name.

        A request of the source for another address proves nothing about this target.

        Args:
            protocol: ``arp``, or ``nd`` for the declared IPv6 address, or that with `LINK` for the
                link-local one.
        """
        own = {"arp": target.address, "nd": target.address6, f"nd{LINK}": target.link_local}
        address, word = str(own[protocol]), protocol.removesuffix(LINK)
        asked = {"kind": f"{word}-request", "mac": source.mac, "target": address}
        answered = {"kind": f"{word}-reply", "mac": target.mac, "ip": address, "label": source.interface}
        return self._heard(target, asked) or self._heard(source, answered)

    def _heard(self, receiver: Endpoint, wanted: Mapping[str, str]) -> bool:
        """Return whether a receiver recorded such a frame; unsolicited announcements do not count."""
        found = (item for item in self.records[receiver.guest] if wanted.items() <= item.items())
        return any(not self.tokens.mark_of(item.get("token")).startswith(TRUTH) for item in found)


def matrix_probes(cells: Sequence[Cell]) -> list[Probe]:
    """Return one raw probe for each cell, addressed so that only the wall can stop it.

    Cells with the same frame share one probe. A frame that must arrive is sent twice. A forbidden frame is
    sent once: its absence counts only if its node lost nothing on the way.
    """
    probes: dict[str, Probe] = {}
    for mark, cell in zip(_marks(cells), cells, strict=True):
        probes.setdefault(mark, Probe(mark, cell.source, {"repeat": 1 + cell.allowed}, of_cell(cell)))
    return list(probes.values())


def _marks(cells: Sequence[Cell]) -> list[str]:
    """Return the mark of each cell's probe; a source's frame to a group is one probe."""
    first: dict[tuple[Endpoint, str], int] = {}
    return [
        CELL
        + str(first.setdefault((cell.source, cell.protocol), number) if cell.protocol in TO_ALL else number)
        for number, cell in enumerate(cells)
    ]


def reach(cells: Sequence[Cell], observation: Observation) -> list[tuple[Cell, bool]]:
    """Return cells whose probes were sent, each with whether its probe arrived (NET-01)."""
    found = []
    for mark, cell in zip(_marks(cells), cells, strict=True):
        if cell.protocol.removesuffix(LINK) in RESOLUTION:
            found.append((cell, observation.resolved(cell.source, cell.target, cell.protocol)))
        else:
            found.append((cell, observation.arrived(mark, cell.target.guest)))
    return found
