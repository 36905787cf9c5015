"""Rules about vsock: no device, no listener and no path leads from a guest to its node (DEV-04). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.verify.devices import declared
from testbed.verify.devices.declared import Entries

_LOCAL, _HOST = 1, 2  # contexts (vsock(7))
_NUMBER = "19"  # of vsock devices (virtio specification, 5)
_IDENTITIES = ("1af4:1012", "1af4:1053")  # of such a device on a PCI bus
_NO_TRANSPORT, _NO_FAMILY, _OWN = "ENODEV", "EAFNOSUPPORT", "own"
_SHOWN = 6


class Sockets(BaseModel):
    """The vsock sockets of a node.

    Args:
        protocols: those of its kernel.
        port: of the listener that the list must contain; 0 if the kernel has no vsock.
        sockets: lines of ss(8).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    protocols: tuple[str, ...]
    port: int
    sockets: tuple[Annotated[str, Field(max_length=400)], ...]


_ATTEMPTS = TypeAdapter(dict[str, list[tuple[int, int]]])


def devices(shown: Entries) -> list[str]:
    """Return the vsock devices that a source shows."""
    found = []
    for source, entries in shown.items():
        of_number = source == declared.GUEST_VIRTIO
        found += [
            f"{source} shows {kind} {detail}".strip()
            for kind, detail in entries
            if "vsock" in kind or kind in _IDENTITIES or (of_number and kind == _NUMBER)
        ]
    return found


def listeners(answer: object) -> list[str]:
    """Return the vsock sockets of a node's programs.

    Args:
        answer: of `testbed.payload.vsock_sockets`.

    Raises:
        UnseenError: the list is not complete.
    """
    try:
        found = Sockets.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(
            f"the node's vsock sockets: {error.error_count()} mistakes in the answer"
        ) from error
    if "TCP" not in found.protocols:
        raise UnseenError("the node's kernel does not list its protocols")
    if "AF_VSOCK" not in found.protocols:
        return []
    ending = f":{found.port}"
    own = [line for line in found.sockets if any(word.endswith(ending) for word in line.split())]
    if not own:
        raise UnseenError("the list of vsock sockets lacks a listener that was opened for it")
    return [line for line in found.sockets if line not in own]


def paths(answer: object, contexts: Sequence[int], ports: Sequence[int]) -> list[str]:
    """Return where a guest's connections over vsock have led to.

    A kernel with the loopback transport leads contexts 1 and 2 back to the guest; such a connection has shown
    that the guest would notice one that succeeds. Without it the guest's kernel alone is believed.

    Args:
        answer: the part "vsock" of the answer of `testbed.payload.guest_devices`.
        contexts: those that it must have tried.
        ports: likewise.

    Raises:
        UnseenError: attempts are missing, or failed before they could lead anywhere.
    """
    refused = answer.get("refused") if isinstance(answer, dict) else None
    if refused == _NO_FAMILY:
        return []
    try:
        outcomes = _ATTEMPTS.validate_python(answer.get("outcomes") if isinstance(answer, dict) else None)
    except ValidationError as error:
        raise UnseenError(f"no attempts over vsock: {refused or 'another form of answer'}") from error
    _require_all(outcomes.values(), contexts, ports)
    control = {outcome for outcome, tried in outcomes.items() for context, _ in tried if context == _LOCAL}
    if control not in ({_OWN}, {_NO_TRANSPORT}):
        raise UnseenError(f"connections to the guest itself ended with {', '.join(sorted(control))}")
    return [
        f"a connection over vsock to {context}:{port} ended with {outcome}"
        for outcome, tried in sorted(outcomes.items())
        for context, port in tried
        if outcome != _NO_TRANSPORT and (outcome, context) not in ((_OWN, _LOCAL), (_OWN, _HOST))
    ][:_SHOWN]


def _require_all(
    tried: Iterable[list[tuple[int, int]]], contexts: Sequence[int], ports: Sequence[int]
) -> None:
    wanted = Counter((context, port) for context in (_LOCAL, *contexts) for port in ports)
    found = Counter(attempt for attempts in tried for attempt in attempts)
    if found != wanted:
        raise UnseenError(f"{sum(found.values())} of {sum(wanted.values())} attempts over vsock")
