"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

from testbed.cli.invocation.shell import known_controls
from testbed.model.environment import Accelerator
from testbed.verify.runner.proof_cache import Part, Proving

Connect = Annotated[
    str,
    typer.Option(
        "--connect",
        metavar="URI",
        help="libvirt that runs the machines; built in if left out",
        envvar="TESTBED_CONNECT",
    ),
]
Cold = Annotated[
    bool, typer.Option("--cold", help="boot machines, and use no saved memory", envvar="TESTBED_COLD")
]
Anew = Annotated[
    bool,
    typer.Option("--anew", help="start from the topology, and from no checkpoint", envvar="TESTBED_ANEW"),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="destroy data in a running lab without a question", envvar="TESTBED_YES")
]

_PARTS = 1000


def proving(text: str) -> Proving:
    """Return what `--prove` or its variable asks for.

    Raises:
        typer.BadParameter: the text is none of the known words.
    """
    words = {
        "": Proving.NOTHING,
        "0": Proving.NOTHING,
        "false": Proving.NOTHING,
        "1": Proving.EVERYTHING,
        "true": Proving.EVERYTHING,
    }
    try:
        return words.get(text.lower()) or Proving(text.lower())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(Proving)}") from None


Prove = Annotated[
    Proving,
    typer.Option(
        "--prove",
        parser=proving,
        metavar="[=changed|one]",
        envvar="TESTBED_PROVE",
        help="open each wall and see the check turn red; =changed: where something has changed since it was "
        "last proven; "
        "=one: by one breach of each check, and not always the same one",
    ),
]  # fmt: skip


def part(text: object) -> Part:
    """Return what `--part` or its variable asks for; the default is a part already.

    Raises:
        typer.BadParameter: the text is no part, such as 2/3.
    """
    number, slash, of = str(text).partition("/")
    if not (slash and number.isascii() and number.isdigit() and of.isascii() and of.isdigit()):
        raise typer.BadParameter(f"{text!r} is no part: the second of three is 2/3")
    if not 1 <= int(number) <= int(of) <= _PARTS:
        raise typer.BadParameter(f"{text!r}: the first of at most {_PARTS} parts is 1")
    return Part(int(number), int(of))


ProofPart = Annotated[
    Part,
    typer.Option(
        "--part",
        parser=part,
        metavar="K/N",
        envvar="TESTBED_PART",
        help="with --prove: run every check, and try the breaches of the Kth of N shares of them; N jobs "
        "prove all",
    ),
]  # fmt: skip
Only = Annotated[
    list[str] | None,
    typer.Option(
        help="control id or its beginning, repeatable", envvar="TESTBED_ONLY", autocompletion=known_controls
    ),
]
Accel = Annotated[
    Accelerator | None,
    typer.Option("--accelerator", help="insist on kvm or tcg", envvar="TESTBED_ACCELERATOR"),
]
