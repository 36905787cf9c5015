"""Rules about imported images: hostile ones are refused, and open no file (STO-03). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from testbed import payload
from testbed.drivers.host.payload_program import import_gate, with_modules
from testbed.hosts.rules import UnseenError
from testbed.plan.host_config import image_import
from testbed.untrusted import bounded_json
from testbed.untrusted.answers import formed
from testbed.untrusted.text import line

__all__ = ["ATTACK", "LIBRARIES", "SECONDS", "TAKEN", "import_gate", "judged"]

_FOLDER = Path(payload.__file__).parent / "images"
LIBRARIES = ("images.forged_qcow2", "images.hostile_images", "images.node_import")  # of the attack
ATTACK = (_FOLDER / "import_attack.py").read_text()
TAKEN = with_modules((_FOLDER / "taken_over.py").read_text(), [])
SECONDS = 60  # of CPU time for a process of the gate
_LEAST = 60  # hostile images
_MEMORY = 128 * 1024  # KiB that the import of one image may hold
_CONTROLS = ("named", "neighbour", "port", "chain")
_GOOD = "good-"  # begins the names of images that must be imported
_CONTROL = "control: its request is read"
_SHOWN = 200
_Text = Annotated[str, Field(max_length=4096)]
_STRICT = ConfigDict(extra="forbid")


class Result(NamedTuple):
    """What the gate made of one image; see `testbed.payload.images.image_gate.one`."""

    refused: _Text
    seconds: float
    memory: int


class Submitted(NamedTuple):
    """One image: whether it must be imported, and the state of its volume afterwards."""

    name: _Text
    good: bool
    answer: Result | None
    volume: _Text


@dataclass(frozen=True, slots=True, config=_STRICT)
class Run:
    """One run of the gate's unit: its exit status, largest memory in bytes, and errors."""

    status: int
    memory: int
    errors: _Text


@dataclass(frozen=True, slots=True, config=_STRICT)
class Taken:
    """A hostile program in the gate's place: its attempts, and its limits as its node sees them."""

    printed: Annotated[str, Field(max_length=20_000)]
    errors: _Text
    outside: dict[str, _Text]


@dataclass(frozen=True, slots=True, config=_STRICT)
class Attack:
    """The answer of `testbed.payload.images.import_attack`; ``spent`` are seconds by phase."""

    opened: dict[str, int]
    images: tuple[Submitted, ...]
    gate: Run
    taken: Taken
    spent: dict[str, float]


_ANSWER = TypeAdapter(Attack)


def judged(answer: object, size: int) -> list[str]:
    """Return what the gate of a node let pass.

    Args:
        answer: of `testbed.payload.images.import_attack`.
        size: of the volumes, in bytes.

    Raises:
        UnseenError: the look is not complete, or would not have seen that a file is opened.
    """
    try:
        found = formed(_ANSWER, answer)
    except ValueError as error:
        raise UnseenError(str(error)) from error
    blind = [name for name in _CONTROLS if not found.opened.get(f"control {name}")]
    if blind:
        raise UnseenError(f"not seen, although it is opened: {', '.join(blind)}")
    return _images(found) or [*_named(found), *_taken(found.taken, size)]


def _named(found: Attack) -> list[str]:
    return [
        f"what images name was opened {found.opened[phase]} times {text}"
        for phase, text in (
            ("gate", "while they were imported"),
            ("taken", "by a parser that was taken over"),
        )
        if found.opened.get(phase)
    ]


def _images(found: Attack) -> list[str]:
    """Return the images that were treated in another way than they must be."""
    hostile = [image for image in found.images if not image.name.startswith(_GOOD)]
    faults = []
    for image in found.images:
        name, answer = line(image.name), image.answer
        if answer is None:
            raise UnseenError(
                f"the gate has no answer for {name}: status {found.gate.status}, "
                f"{line(found.gate.errors)[:_SHOWN]}"
            )
        if answer.memory > _MEMORY or answer.seconds > SECONDS + 1:
            faults.append(f"{name} took {answer.memory} KiB and {answer.seconds} s")
        if not image.good and not answer.refused:
            faults.append(f"{name} is imported")
        elif not image.good and image.volume != "blank":
            faults.append(f"{name} is refused, and has left something in the volume")
        elif image.good and answer.refused and not image.name.startswith(_GOOD):
            faults.append(f"{name} is not taken as raw octets: {line(answer.refused)[:_SHOWN]}")
        elif image.good and not answer.refused and image.volume != "whole":
            faults.append(f"{name} is imported with other octets")
    refused = [line(image.name) for image in found.images if _refused(image)]
    if faults:
        return faults
    if refused or len(hostile) < _LEAST or not found.gate.memory:
        raise UnseenError(
            f"{len(hostile)} hostile images, {found.gate.memory} octets of memory; good ones that are "
            f"refused: {', '.join(refused) or 'none'}"
        )
    return []


def _refused(image: Submitted) -> bool:
    return image.name.startswith(_GOOD) and image.answer is not None and image.answer.refused != ""


def _taken(taken: Taken, size: int) -> list[str]:
    """Return what a parser could do that an image has taken over."""
    try:
        tried = bounded_json.read(taken.printed)
    except ValueError as error:
        raise UnseenError(f"a hostile parser: {line(taken.errors)[:_SHOWN]}") from error
    if not isinstance(tried, dict) or tried.get(_CONTROL) != "" or len(tried) < 2:
        raise UnseenError(f"a hostile parser: {line(str(tried))[:_SHOWN]}")
    faults = [f"a parser that is taken over can {line(name)}" for name, told in tried.items() if not told]
    faults.remove(f"a parser that is taken over can {_CONTROL}")
    wanted = limits(size)
    if not taken.outside.keys() >= wanted.keys():
        raise UnseenError(
            f"the limits of the gate: {', '.join(sorted(wanted.keys() - taken.outside.keys()))}"
        )
    faults += [
        f"{name} of the gate is {line(taken.outside[name])}, and not {value}"
        for name, value in wanted.items()
        if taken.outside[name] != value
    ]
    if taken.outside.get("Uid") in (None, "0"):
        faults.append("the gate runs as root")
    return faults


def limits(size: int) -> Mapping[str, str]:
    """Return the limits of the gate, as the kernel shows them.

    Args:
        size: of a volume, in bytes.
    """
    nothing = "0" * 16
    return {
        "Max cpu time": str(SECONDS), "Max file size": str(size), "Max core file size": "0",
        "Max open files": str(image_import.DESCRIPTORS), "Max address space": str(image_import.ADDRESS_SPACE),
        "memory.max": str(size + image_import.WORKING), "memory.swap.max": "0",
        "pids.max": str(image_import.TASKS), "CapEff": nothing, "CapBnd": nothing, "NoNewPrivs": "1",
        "Seccomp": "2", "net namespace": "its own", "mnt namespace": "its own", "ipc namespace": "its own",
    }  # fmt: skip
