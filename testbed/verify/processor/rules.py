"""Rules about virtual processors: each returns what opens a wall, as texts (CMP-04). Pure.

Bits of CPUID are those of AMD's (volume 3, appendix E) and Intel's manuals (volume 2, CPUID).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.hosts.rules import UnseenError

EAX, EBX, ECX, EDX = range(4)
_NAMES = ("EAX", "EBX", "ECX", "EDX")
Words = Mapping[tuple[str, int], int]  # by leaf ("leaf.subleaf") and register


class Feature(NamedTuple):
    """Bits of a word of CPUID that no guest may show."""

    name: str
    leaf: str
    register: int
    bits: int


_ALL = 0xFFFFFFFF
FORBIDDEN = (
    Feature("SVM, which runs guests", "80000001.0", ECX, 1 << 2),
    *(Feature("details of SVM", "8000000a.0", register, _ALL) for register in range(4)),
    Feature("VMX, which runs guests", "1.0", ECX, 1 << 5),
    Feature("SMX", "1.0", ECX, 1 << 6),
    Feature("capabilities of performance counters", "1.0", ECX, 1 << 15),
    Feature("performance counters of the core", "80000001.0", ECX, 1 << 23),
    Feature("performance counters of the north bridge", "80000001.0", ECX, 1 << 24),
    Feature("performance counters of the last cache", "80000001.0", ECX, 1 << 28),
    Feature("sampling of instructions", "80000001.0", ECX, 1 << 10),
    Feature("architectural performance counters", "a.0", EAX, 0xFF),
    Feature("PerfMonV2", "80000022.0", EAX, 1),
    Feature("the debug store", "1.0", EDX, 1 << 21),
    Feature("the trace of a processor", "7.0", EBX, 1 << 25),
    Feature("SGX", "7.0", EBX, 1 << 2),
    Feature("encrypted memory of guests", "8000001f.0", EAX, 0b1010),
)
_HYPERVISOR = Feature("a hypervisor", "1.0", ECX, 1 << 31)
# Bits that a processor derives from its state: of the local APIC, of XSAVE and of protection keys.
_CHANGING = {("1.0", EDX): 1 << 9, ("1.0", ECX): 1 << 27, ("7.0", ECX): 1 << 4}
# Registers of the model that no guest may have, by what reading them would show.
READ = {
    "read a register that does not exist": 0x0BAD0BAD,
    "read the first register of VMX": 0x480,
    "read a performance counter of the core": 0xC0010200,
    "read the state of PerfMonV2": 0xC0000300,
    "read the control of all performance counters": 0x38F,
}
WRITE = {"write a register that does not exist": 0x0BAD0BAD}
_OWN = ("enable SVM", "count cycles")
_FAULTED, _STANDING = "EIO", "ENODATA"
_SHOWN = 2

_Short = Annotated[str, Field(max_length=40)]
_Word = Annotated[int, Field(ge=0, le=_ALL)]


class Shown(BaseModel):
    """What a guest shows of its processors; everything is untrusted.

    Args:
        cpus: CPUID by processor and leaf.
        attempts: how each ended.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    cpus: Annotated[
        dict[_Short, Annotated[dict[_Short, tuple[_Word, _Word, _Word, _Word]], Field(max_length=256)]],
        Field(min_length=1, max_length=64),
    ]
    attempts: Annotated[dict[_Short | Annotated[str, Field(max_length=80)], _Short], Field(max_length=64)]


class _FeatureWord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    register_: Annotated[Literal["EAX", "EBX", "ECX", "EDX"], Field(alias="cpuid-register")]
    leaf: Annotated[_Word, Field(alias="cpuid-input-eax")]
    below: Annotated[_Word, Field(alias="cpuid-input-ecx")] = 0
    features: _Word


_FEATURE_WORDS = TypeAdapter(list[_FeatureWord])


def of_guest(answer: object) -> Shown:
    """Return what a guest shows.

    Args:
        answer: of `testbed.payload.virtual_cpu`.

    Raises:
        UnseenError: it has another form.
    """
    try:
        return Shown.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"its processors: {error.error_count()} mistakes in the answer") from error


def of_qemu(answer: object) -> Words:
    """Return the words of CPUID that QEMU gives a processor.

    Args:
        answer: the property "feature-words" of the processor.

    Raises:
        UnseenError: it has another form.
    """
    try:
        found = _FEATURE_WORDS.validate_python(answer)
    except ValidationError as error:
        raise UnseenError(f"QEMU's words of CPUID: {error.errors()[:_SHOWN]}") from error
    return {(f"{word.leaf:x}.{word.below}", _NAMES.index(word.register_)): word.features for word in found}


def words(leaves: Mapping[str, tuple[int, ...]]) -> Words:
    """Return the words of CPUID that a guest reads."""
    return {
        (leaf, register): value for leaf, values in leaves.items() for register, value in enumerate(values)
    }


def forbidden(found: Words) -> list[str]:
    """Return the features that a processor has and must not have.

    Raises:
        UnseenError: it is none of a virtual machine, as it was read.
    """
    if not _has(found, _HYPERVISOR):
        raise UnseenError("its CPUID does not show a hypervisor")
    return list(dict.fromkeys(f"it has {feature.name}" for feature in FORBIDDEN if _has(found, feature)))


def different(given: Words, shown: Words) -> list[str]:
    """Return the words of CPUID in which a guest and its QEMU differ.

    Args:
        given: by QEMU.
        shown: to the guest, which has more of them.

    Raises:
        UnseenError: QEMU or the guest shows too few.
    """
    common = [place for place in given if place in shown]
    if ("1.0", ECX) not in common or ("80000001.0", ECX) not in common:
        raise UnseenError("QEMU and the guest show no common words of CPUID")
    found = []
    for leaf, register in common:
        changing = _CHANGING.get((leaf, register), 0)
        one, other = (source[leaf, register] & ~changing for source in (given, shown))
        if one != other:
            found.append(f"leaf {leaf} {_NAMES[register]} is {other:#x} in it, and {one:#x} in QEMU")
    return found


def answered(attempts: Mapping[str, str]) -> list[str]:
    """Return the attempts that did not fault.

    Raises:
        UnseenError: some are missing, or failed before they reached the processor.
    """
    wanted = {"control", *READ, *WRITE, *_OWN}
    if attempts.keys() != wanted:
        raise UnseenError(f"{len(attempts)} of {len(wanted)} attempts on its registers")
    if attempts["control"] != "done":
        raise UnseenError(f"its registers cannot be read: {attempts['control']}")
    odd = {
        name: outcome
        for name, outcome in attempts.items()
        if outcome not in ("done", _FAULTED) and (name, outcome) != ("count cycles", _STANDING)
    }
    if odd:
        raise UnseenError(f"attempts on its registers ended otherwise: {odd}")
    return [f"it can {name}" for name, outcome in attempts.items() if outcome == "done" and name != "control"]


def undeclared(declared: str, live: str) -> list[str]:
    """Return in what the processor of a live domain differs from the declared one.

    Args:
        declared: XML that a guest is started from.
        live: libvirt's XML of it.

    Raises:
        UnseenError: it is no XML.
    """
    try:
        wanted, found = (_processor(ET.fromstring(xml)) for xml in (declared, live))
    except ET.ParseError as error:
        raise UnseenError(f"the XML of a domain: {error}") from error
    return [
        f"libvirt's XML has {name} {found.get(name, 'unset')}, and not {wanted.get(name, 'unset')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def _processor(root: ET.Element) -> dict[str, str]:
    cpu, counters = root.find("cpu"), root.find("features/pmu")
    found = {"the processor's mode": cpu.get("mode", "")} if cpu is not None else {}
    for feature in root.iterfind("cpu/feature"):
        found[f"the feature {feature.get('name')}"] = feature.get("policy", "")
    if counters is not None:
        found["performance counters"] = counters.get("state", "")
    return found


def _has(found: Words, feature: Feature) -> bool:
    return bool(found.get((feature.leaf, feature.register), 0) & feature.bits)
