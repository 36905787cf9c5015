"""Walks classes of packets through a bridge's tables, to all places in reach (NET-01).

Approximations make classes larger, never smaller, so a path that is not found does not exist: a rule that
matches a part of a class leaves the whole class to the rules below it, unless one bit distinguishes the
parts. The reaction of a program (ovn-controller) to packets that it receives is not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

from testbed.errors import InstrumentError
from testbed.verify.openflow import flow_table
from testbed.verify.openflow.flow_table import STATES, Tables
from testbed.verify.openflow.header_space import FIELDS, Cube, Field

# Possible results of connection tracking, as value and mask of ``ct_state``: the packet belongs to no
# connection, or any result.
NEW = tuple((STATES["trk"] | STATES[name], 0xFFFF) for name in ("new", "inv"))
ANY = ((STATES["trk"], STATES["trk"]),)
CONTROLLER = "controller"  # the exit of packets that are sent to a program
_DEPTH = 64  # levels of resubmission, as in Open vSwitch
_STEPS = 200_000
_IDLE = frozenset({"drop", "meter", "note", "conjunction", "set_queue", "pop_queue", "sample"})
_ADDRESSES = tuple(FIELDS[name] for name in ("nw_src", "nw_dst", "ipv6_src", "ipv6_dst", "tp_src", "tp_dst"))
_EMPTY = tuple(
    name for name in FIELDS if name in ("ct_state", "ct_mark", "metadata") or name.startswith("xxreg")
)  # 0 when a packet enters the bridge


@dataclass(frozen=True, slots=True)
class PacketState:
    """A class of packets in the middle of a pipeline, and the pipeline's stack."""

    cube: Cube
    stack: tuple[tuple[int, int], ...] = ()

    def where(self, cube: Cube) -> PacketState:
        """Return the same state with another class."""
        return replace(self, cube=cube)


@dataclass(frozen=True, slots=True)
class WalkEnd:
    """Packets that leave a bridge.

    Args:
        port: OpenFlow number of a port, or its name in a rule.
        cube: their class at the end.
        path: the tables on their way.
    """

    port: str
    cube: Cube
    path: tuple[int, ...]


@dataclass
class SymbolicWalk:
    """One walk over one bridge.

    Args:
        tracked: the connection tracking states that a packet may have: `NEW` or `ANY`.
    """

    tables: Tables
    tracked: Sequence[tuple[int, int]]
    exits: dict[tuple[str, Cube], WalkEnd] = field(default_factory=dict)
    _done: dict[tuple[int, PacketState], frozenset[PacketState] | None] = field(default_factory=dict)
    _path: list[int] = field(default_factory=list)
    _steps: int = 0

    def __post_init__(self) -> None:
        self._known: dict[str, Callable[[Any, PacketState], Iterable[PacketState]]] = {
            **_PLAIN,
            "resubmit": self._resubmit,
            "goto_table": self._enter,
            "clone": self._clone,
            "output": self._output,
            "controller": self._controller,
            "CONTROLLER": self._controller,
            "ct": self._track,
        }

    def start(self, cubes: Iterable[Cube]) -> Sequence[WalkEnd]:
        """Return the places where packets can leave that come in with their class's ``in_port``.

        Raises:
            InstrumentError: a rule has an action that this walk does not know, or there are too many classes.
        """
        for cube in _largest([_fresh(cube) for cube in cubes]):
            self._enter(0, PacketState(cube))
        return tuple(self.exits.values())

    def _enter(self, number: int, state: PacketState) -> frozenset[PacketState]:
        """Look a class up in a table; return the classes after the table's actions."""
        key = (number, state)
        if key in self._done and (found := self._done[key]) is not None:
            return found
        self._steps += 1
        if key in self._done or self._steps > _STEPS or len(self._path) > _DEPTH:
            fact = f"{self._steps} classes, {len(self._path)} tables deep, at table {number}"
            raise InstrumentError(
                "a switch has paths without an end", fact=fact, remedy="report it with the switch's rules"
            )
        self._done[key] = None  # in progress: a second entry is a loop
        self._path.append(number)
        results = {
            after for actions, taken in self._taken(number, state) for after in self._act(actions, {taken})
        }
        self._path.pop()
        self._done[key] = frozenset(results)
        return frozenset(results)

    def _taken(
        self, number: int, state: PacketState
    ) -> Iterator[tuple[Sequence[Mapping[str, Any]], PacketState]]:
        """Yield the actions that a table may take, and the part of the class for each.

        Packets that no rule matches get no actions.
        """
        found: dict[str, tuple[Sequence[Mapping[str, Any]], list[Cube]]] = {}
        rest: Cube | None = state.cube
        for _, equals in groupby(
            self.tables.get(number, ()), attrgetter("priority")
        ):  # the order of rules with equal priority is not defined
            left: Cube | None = rest
            for rule in equals:
                if rest is None or rule.partial or not rest.meets(rule.match):
                    continue
                found.setdefault(rule.text, (rule.actions, []))[1].append(rest.narrowed(rule.match))
                if rule.exact and left is not None:
                    left = left.outside(rule.match)
            rest = left
        if rest is not None:
            found.setdefault("", ((), []))[1].append(rest)
        for actions, cubes in found.values():
            yield from ((actions, state.where(cube)) for cube in _largest(cubes))

    def _act(self, actions: Sequence[Mapping[str, Any]], states: set[PacketState]) -> set[PacketState]:
        for action in actions:
            for name, value in action.items():
                states = {found for state in states for found in self._do(name, value, state)}
        return states

    def _do(self, name: str, value: Any, state: PacketState) -> Iterable[PacketState]:  # noqa: ANN401 - as `ovs.flow` reads it
        if name in _IDLE:
            return (state,)
        if name not in self._known:
            fact = f"{name} in table {self._path[-1]}"
            raise InstrumentError("a rule does what the walk does not know", fact=fact, remedy="report it")
        try:
            return self._known[name](value, state)
        except (AttributeError, TypeError, ValueError) as error:  # arguments that no switch prints
            fact = f"{name} with {value!r:.200} in table {self._path[-1]}"
            raise InstrumentError(
                "a rule does what the walk does not know", fact=fact, remedy="report it"
            ) from error

    def _resubmit(self, value: Mapping[str, Any], state: PacketState) -> Iterable[PacketState]:
        table, port = value.get("table"), value.get("port")
        if table in ("", None):
            table = self._path[-1]
        if port in ("", None):
            return self._enter(int(table), state)
        place = FIELDS["in_port"]
        own = state.cube.get(place)
        moved = state.where(state.cube.put(place, *(flow_table.bits(port, place.width) or (0, 0))))
        return [found.where(found.cube.fill(place, *own)) for found in self._enter(int(table), moved)]

    def _clone(self, value: Sequence[Mapping[str, Any]], state: PacketState) -> Iterable[PacketState]:
        self._act(value, {state})
        return (state,)

    def _output(self, value: Mapping[str, Any], state: PacketState) -> Iterable[PacketState]:
        port = value.get("port", value.get("field"))
        register = flow_table.field(port) if isinstance(port, str) and "[" in port else None
        if register is not None:
            number, known = state.cube.get(register)
            port = number if known == register.whole else port
        self._leave(str(port), state)
        return (state,)

    def _controller(self, value: object, state: PacketState) -> Iterable[PacketState]:
        self._leave(CONTROLLER, state)
        if isinstance(value, dict) and value.get("pause"):  # it continues with an answer in a register
            return (state.where(state.cube.forget(FIELDS["xxreg0"])),)
        return (state,)

    def _leave(self, port: str, state: PacketState) -> None:
        self.exits.setdefault((port, state.cube), WalkEnd(port, state.cube, tuple(self._path)))

    def _track(self, value: Mapping[str, Any] | bool, state: PacketState) -> Iterable[PacketState]:
        """Send a packet through connection tracking.

        A copy with a known state continues in another table.
        """
        if isinstance(value, Mapping) and "table" in value:  # ct without arguments leads nowhere else
            for tracked, known in self.tracked:
                cube = state.cube.fill(FIELDS["ct_state"], tracked, known)
                if known != FIELDS["ct_state"].whole:  # it may belong to a connection
                    cube = cube.forget(FIELDS["ct_mark"], *(_ADDRESSES if value.get("nat") else ()))
                self._enter(int(value["table"]), state.where(cube))
        return (state,)


def _fresh(cube: Cube) -> Cube:
    """Return a class as it enters the bridge: without connection state, all registers zero."""
    for name in _EMPTY:
        cube = cube.fill(FIELDS[name], 0)
    return cube


def _largest(cubes: Sequence[Cube]) -> list[Cube]:
    """Return the classes that are not contained in another one."""
    found: list[Cube] = []
    for item in sorted(set(cubes), key=lambda item: item.known.bit_count()):
        if not any(item.within(other) for other in found):
            found.append(item)
    return found


def _place(value: Mapping[str, Any]) -> Field | None:
    return flow_table.field(value["field"], value.get("start"), value.get("end"))


def _set(value: Mapping[str, Any], state: PacketState) -> Iterable[PacketState]:
    cube = state.cube
    for name, written in value["value"].items():
        place = flow_table.field(name)
        if place is not None:
            found = flow_table.bits(written, place.width)
            cube = cube.put(place, *found) if found else cube.forget(place)
    return (state.where(cube),)


def _load(value: Mapping[str, Any], state: PacketState) -> Iterable[PacketState]:
    place = _place(value["dst"])
    return (state if place is None else state.where(state.cube.fill(place, int(value["value"]))),)


def _move(value: Mapping[str, Any], state: PacketState) -> Iterable[PacketState]:
    source, target = _place(value["src"]), _place(value["dst"])
    if target is None:
        return (state,)
    return (
        state.where(
            state.cube.forget(target) if source is None else state.cube.fill(target, *state.cube.get(source))
        ),
    )


def _push(value: Mapping[str, Any], state: PacketState) -> Iterable[PacketState]:
    place = _place(value)
    return (replace(state, stack=(*state.stack, (0, 0) if place is None else state.cube.get(place))),)


def _pop(value: Mapping[str, Any], state: PacketState) -> Iterable[PacketState]:
    if not state.stack:
        return (state,)
    place = _place(value)
    return (
        PacketState(
            state.cube if place is None else state.cube.fill(place, *state.stack[-1]), state.stack[:-1]
        ),
    )


def _untracked(_: object, state: PacketState) -> Iterable[PacketState]:
    return (state.where(state.cube.fill(FIELDS["ct_state"], 0)),)


def _retagged(_: object, state: PacketState) -> Iterable[PacketState]:
    return (state.where(state.cube.forget(FIELDS["vlan_tci"], FIELDS["dl_type"])),)


def _aged(_: object, state: PacketState) -> Iterable[PacketState]:
    return (state.where(state.cube.forget(FIELDS["nw_ttl"])),)


# Actions that change a packet or its metadata, and forward nothing.
_PLAIN: dict[str, Callable[[Any, PacketState], Iterable[PacketState]]] = {
    "set_field": _set, "load": _load, "move": _move, "push": _push, "pop": _pop, "ct_clear": _untracked,
    "push_vlan": _retagged, "pop_vlan": _retagged, "dec_ttl": _aged,
}  # fmt: skip
