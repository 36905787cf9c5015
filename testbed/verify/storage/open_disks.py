"""The disks that a QEMU has open: its answer to query-block (QEMU, QMP reference). Untrusted, and pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.untrusted.answers import mistakes

_Text = Annotated[str, Field(max_length=100_000)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Snapshot(_Form):
    """An internal snapshot of an image."""

    name: _Text


class Specific(_Form):
    """What an image's driver adds."""

    data: dict[str, object] = {}


class Image(_Form):
    """The image below a disk."""

    filename: _Text
    snapshots: list[Snapshot] = []
    backing_format: _Text = Field("", alias="backing-filename-format")
    specific: Specific = Field(Specific(), alias="format-specific")


class OpenDisk(_Form):
    """A disk with a medium; `drv` is QEMU's driver, `file` the path or the description of its options."""

    drv: _Text
    file: _Text
    backing_file: _Text = ""
    detect_zeroes: _Text
    image: Image


class _Slot(_Form):
    qdev: _Text = ""
    inserted: OpenDisk | None = None


_SLOTS = TypeAdapter(list[_Slot])


def parsed(answer: object, whose: str) -> list[tuple[str, OpenDisk]]:
    """Return the device and the disk of each slot that has a medium.

    Args:
        answer: of QEMU to query-block.
        whose: the guest, for the error.

    Raises:
        UnseenError: the answer has another form.
    """
    try:
        slots = _SLOTS.validate_python(answer)
    except ValidationError as error:
        raise UnseenError(f"the disks of {whose}: {mistakes(error)}") from error
    return [(slot.qdev, slot.inserted) for slot in slots if slot.inserted]
