"""Gives an answer from a guest or a node its form. Pure."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from testbed.untrusted.text import line

_SHOWN = 2  # mistakes that a text names
_Value = TypeVar("_Value")


def formed(form: TypeAdapter[_Value], answer: object) -> _Value:
    """Return an answer in its form.

    Raises:
        ValueError: it has another one; the text names the first mistakes, and nothing of the answer.
    """
    try:
        return form.validate_python(answer)
    except ValidationError as error:
        raise ValueError(mistakes(error)) from error


def mistakes(error: ValidationError) -> str:
    """Return the first mistakes of an answer, without anything of it."""
    return line(str(error.errors(include_url=False, include_input=False)[:_SHOWN]))
