"""What receivers saw, and what that says about the cells of the matrix. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from testbed.errors import InstrumentError
from testbed.model.reachability import LINK, RESOLUTION, TO_ALL, Cell, Endpoint
from testbed.untrusted.bounded_json import real, whole
from testbed.verify.observation import two_witnesses
from testbed.verify.probe.client import Probe, Record, broken
from testbed.verify.probe.frames import of_cell
from testbed.verify.probe.tokens import Tokens

CELL = "cell"  # how the marks of probes begin that ask cells of the matrix
TRUTH = "truth"  # how the marks of frames begin by which ends of flows tell of themselves unasked


@dataclass(frozen=True, slots=True)
class Observation:
    """What the receivers saw of a set of probes.

    Args:
        records: by guest, every frame of this run that counts as having come in, whichever of the two
            witnesses saw it.
        answers: by mark, what the sender got back.
        strays: by guest, frames without a token that came in from MAC addresses that are no guest's.
        told: by guest, what its own recorder says.
        seen: by guest, what its node's recorder saw going to it.
        doubt: why guests' recorders cannot vouch for the whole window, if they cannot: then there is no pass.
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
        """Return what two witnesses make known together."""
        records = {guest: two_witnesses.counted(tokens, told[guest], seen.get(guest, [])) for guest in told}
        return cls(tokens, records, answers, strays, told, seen, doubt)

    def token(self, mark: str) -> str:
        """Return the token that a probe's frames carry."""
        return self.tokens.of(mark)

    def arrived(self, mark: str, guest: str) -> bool:
        """Tell whether a probe's frame was seen coming in at a guest, by either of the two witnesses."""
        return two_witnesses.holds(self.records[guest], self.token(mark))

    def arrivals(self, mark: str) -> dict[str, str]:
        """Return the guests at which a probe's frame was seen coming in, each with words that say where
        witnesses differ.
        """
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
        """Return by guest the marks of frames that its node handed to it, and that it does not tell of."""
        return self._only(self.seen, self.told)

    def past(self) -> dict[str, set[str]]:
        """Return by guest the marks of frames that it tells of, and that its node did not hand to it by its
        interfaces.
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
        """Return the guests at which a probe's frame was seen coming in."""
        return [guest for guest in self.records if self.arrived(mark, guest)]

    def windows(self, mark: str) -> list[tuple[str, float, int]]:
        """Return guest, seconds between the first and the last sighting, and number of sightings of a probe's
        frames.

        Raises:
            InstrumentError: a guest's recorder tells no numbers.

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
            raise broken("a recorder tells no numbers", str(error)) from error

    def resolved(self, source: Endpoint, target: Endpoint, protocol: str = "arp") -> bool:
        """Tell whether a question for a target's address reached it, or an answer in its name came back.

        A request that the source made for somebody else's address says nothing about this target.

        Args:
            protocol: ``arp``, or ``nd`` for the declared IPv6 address, or that with `LINK` for the link-local
                one.

        """
        own = {"arp": target.address, "nd": target.address6, f"nd{LINK}": target.link_local}
        address, word = str(own[protocol]), protocol.removesuffix(LINK)
        asked = {"kind": f"{word}-request", "mac": source.mac, "target": address}
        answered = {"kind": f"{word}-reply", "mac": target.mac, "ip": address, "label": source.interface}
        return self._heard(target, asked) or self._heard(source, answered)

    def _heard(self, receiver: Endpoint, wanted: Mapping[str, str]) -> bool:
        """Tell whether a receiver has heard such a frame; what an end tells unasked is no answer."""
        found = (item for item in self.records[receiver.guest] if wanted.items() <= item.items())
        return any(not self.tokens.mark_of(item.get("token")).startswith(TRUTH) for item in found)


def matrix_probes(cells: Sequence[Cell]) -> list[Probe]:
    """Return one raw probe for each cell, addressed so that only the wall can stop it; cells that ask the
    same share one.

    What must arrive is sent twice. What must not is sent once: it counts only if its node lost nothing on the
    way.
    """
    probes: dict[str, Probe] = {}
    for mark, cell in zip(_marks(cells), cells, strict=True):
        probes.setdefault(mark, Probe(mark, cell.source, {"repeat": 1 + cell.allowed}, of_cell(cell)))
    return list(probes.values())


def _marks(cells: Sequence[Cell]) -> list[str]:
    """Return the mark of each cell's probe: what one source says to everybody is one frame, whoever may hear
    it.
    """
    first: dict[tuple[Endpoint, str], int] = {}
    return [
        CELL
        + str(first.setdefault((cell.source, cell.protocol), number) if cell.protocol in TO_ALL else number)
        for number, cell in enumerate(cells)
    ]


def reach(cells: Sequence[Cell], observation: Observation) -> list[tuple[Cell, bool]]:
    """Return cells whose probes were sent, each with what was observed: whether it arrived (NET-01)."""
    found = []
    for mark, cell in zip(_marks(cells), cells, strict=True):
        if cell.protocol.removesuffix(LINK) in RESOLUTION:
            found.append((cell, observation.resolved(cell.source, cell.target, cell.protocol)))
        else:
            found.append((cell, observation.arrived(mark, cell.target.guest)))
    return found
