"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

from testbed.cli.invocation.shell import known_controls
from testbed.model.environment import Accelerator
from testbed.verify.runner.proof_cache import Proving

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
