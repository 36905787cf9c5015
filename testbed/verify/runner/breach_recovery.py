"""Closes breaches that a killed process left open.

They are found by their names in the journal (docs/design.md, section 6).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from testbed.engine.place import Progress
from testbed.errors import ProvisioningError
from testbed.lab.breach_journal import Entry, Journal, Record
from testbed.lab.session import Lab
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import ATTRIBUTE, Breach, Declaration
from testbed.verify.runner.proof import close_breach

FLEET = "fleet"  # case of a check about the whole fleet


def context_of(lab: Lab, case: str) -> BreachContext:
    """Return the context in which the breaches of a case act."""
    return BreachContext(lab, "" if case == FLEET else case)


def close_left(lab: Lab, folder: Path, progress: Progress) -> list[str]:
    """Close every breach in the journal, and return the closed ones.

    An entry is removed when its breach is seen not to be in force.

    Args:
        folder: folder of the checks.

    Raises:
        ProvisioningError: a breach is still in force, or no check declares it any more; the others are
            closed all the same.
    """
    journal = Journal(lab.workspace)
    journal.sweep()
    found = journal.entries()
    declared = list(declarations(folder)) if found else []
    closed, failures = [], []
    for host in lab.hosts if found else ():
        host.await_orphans()
    for entry in found:
        trouble = _close(lab, declared, entry)
        if trouble:
            failures.append(f"{entry}: {trouble}")
        else:
            journal.remove(entry)
            progress(f"closed the breach {entry}")
            closed.append(str(entry))
    if failures:
        name = lab.topology.name
        what = f"{len(failures)} of {len(found)} breaches that were left open could not be closed"
        remedy = (
            f"repair the cause and run `testbed up {name}`, or build the lab again: `testbed down {name}`, "
            "then `testbed up TOPOLOGY`"
        )
        raise ProvisioningError(what, fact="; ".join(failures), remedy=remedy)
    return closed


def _close(lab: Lab, declared: list[Declaration], entry: Entry) -> str:
    """Close one breach; return the empty string, or the reason why it may still be open."""
    if entry.record is None:
        return "so nobody knows what was opened"
    breach = find(declared, entry.record)
    if breach is None:
        return f"no check of {entry.record.control} declares it any more, so nobody knows how to close it"
    return close_breach(breach, context_of(lab, entry.record.case))


def declarations(folder: Path) -> Iterator[Declaration]:
    """Yield the declarations of a folder's checks.

    Raises:
        ProvisioningError: a file cannot be loaded, or Python finds another one of its name.
    """
    for file in sorted(folder.glob("test_*.py")):
        try:
            sys.path.insert(0, str(folder.parent))
            module = import_module(f"{folder.name}.{file.stem}")
        except Exception as error:
            fact = f"{file}: {type(error).__name__}: {error}"
            raise ProvisioningError(
                "a check cannot be loaded", fact=fact, remedy="repair the installation"
            ) from error
        finally:
            sys.path.remove(str(folder.parent))
        if module.__file__ is None or not file.samefile(module.__file__):
            raise ProvisioningError(
                "a check cannot be loaded", fact=f"{module.__file__} hides {file}", remedy="unset PYTHONPATH"
            )
        yield from (
            found
            for item in vars(module).values()
            if isinstance(found := getattr(item, ATTRIBUTE, None), Declaration)
        )


def find(declared: list[Declaration], record: Record) -> Breach | None:
    """Return the breach that a record names, or None.

    Breaches of one control with the same name are the same.
    """
    of_control = (
        breach
        for declaration in declared
        if declaration.id == record.control
        for breach in declaration.breaches
    )
    return next((breach for breach in of_control if breach.name == record.breach), None)
