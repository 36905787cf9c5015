"""What is on the machines of a running lab and follows from no topology, for `plan --whole`."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.errors import Exit
from testbed.untrusted.text import line
from testbed.verify.machine_reference import MachineState

_SHOWN = 100  # findings of a machine that the text form lists


def text(lab: str, found: Mapping[str, MachineState]) -> list[str]:
    """Return the findings in lines, and how each machine is repaired."""
    lines = []
    for name, state in found.items():
        told = [line(finding) for finding in state.findings]
        told += [f"{name}: not read: {line(gap)}" for gap in state.gaps]
        lines += told[:_SHOWN]
        lines += [f"{name}: and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
        if state.findings:
            lines.append(
                f"rebuild {name}: `testbed up {lab} --rebuild {name}` replaces it by one from its image"
            )
        else:
            lines.append(f"{name}: {line(state.counted)}")
    return lines


def data(found: Mapping[str, MachineState]) -> list[dict[str, object]]:
    """Return the findings as JSON, one object for each machine."""
    return [
        {
            "machine": name,
            "findings": [finding.data() for finding in state.findings],
            "not_read": [*state.gaps],
            "judged": state.counted,
        }
        for name, state in found.items()
    ]


def exit_code(found: Mapping[str, MachineState]) -> Exit:
    """Return 6 if there are findings, 3 if a machine could not be read or has no reference, else 0."""
    states = found.values()
    if any(state.findings for state in states):
        return Exit.CHANGES
    return Exit.INCONCLUSIVE if any(state.gaps or state.without for state in states) else Exit.OK
