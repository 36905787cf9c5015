"""What the kernel loads for an ordinary account (ACC-10). Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.hosts.rules import UnseenError

_Word = Annotated[str, Field(max_length=120)]
_CONTROL = {"a socket of TCP": "done", "root's file": "EACCES"}  # so the child was an ordinary account
_NAMESPACE = "interfaces in a namespace"  # one of the requests
_LEAST = 10  # requests; the kernel of the images has modules for some fifty


class _Answer(BaseModel):
    """The answer of `testbed.payload.kernel.module_requests`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    outcomes: Annotated[dict[_Word, _Word], Field(max_length=1000)]
    loaded: Annotated[list[_Word], Field(max_length=1000)]
    control: dict[_Word, _Word]


def loaded(answer: object) -> list[str]:
    """Return the modules that the kernel loaded for the requests of an account.

    Raises:
        UnseenError: the answer is none, the account was not an ordinary one, or it asked for too little.
    """
    try:
        found = _Answer.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"requests for modules: {error.error_count()} mistakes in the answer") from error
    if found.control != _CONTROL:
        raise UnseenError(f"the account that asks is no ordinary one: {found.control}")
    if len(found.outcomes) < _LEAST or _NAMESPACE not in found.outcomes:
        raise UnseenError(f"only {len(found.outcomes)} requests for modules were made")
    return found.loaded
