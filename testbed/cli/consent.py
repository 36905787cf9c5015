"""Consent to a change of a running lab: refusals, and a question before data is lost."""

from __future__ import annotations

from testbed.cli.output.terminal import agreed, attended, say, warn
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.namespaces import lab_namespaces
from testbed.engine import observe
from testbed.errors import TestbedError, UsageError
from testbed.lab import session
from testbed.lab.breach_journal import Journal
from testbed.plan import render
from testbed.plan.diff import Held, Plan, data_of, diff
from testbed.plan.resources import Inputs, Key, Properties, desired


def agree(opened: session.Lab, *, yes: bool) -> observe.Look:
    """Return the observed state of a running lab for which the change was agreed to.

    Nothing has been changed or stored then. A lab of the same topology is only repaired, without a question;
    of it only the outer machine is looked at, where another image or accelerator shows. A place that cannot
    be observed is taken for what its topology says.

    Args:
        yes: there is no question.

    Raises:
        UsageError: it cannot be done while the lab runs, or it would destroy data without consent.

    """
    before, same = _before(opened)
    whole = not same and not Journal(opened.workspace).entries()
    places = opened.places if whole else opened.places[:1]
    seen = observe.look(opened.desired, places)
    found = {key: properties for key, properties in before.items() if key.place in seen.failed}
    for observed in seen.found.values():
        found.update(observed)
    plan = diff(
        opened.desired,
        found,
        seen.unseen,
        held(opened.workspace, opened.inputs.plan_inputs) if before else None,
    )
    asked = require_agreement(plan, opened.topology.name, yes=yes)
    return observe.look(opened.desired, places) if asked else seen


def require_images(workspace: Workspace, *, yes: bool) -> None:
    """Refuse to bake images for an `up` that will be refused for want of a terminal.

    New images replace every machine of a running lab, and to bake them takes minutes.

    Raises:
        UsageError: the lab runs, images are missing, and there is neither --yes nor a terminal.

    """
    if yes or attended() or lab_namespaces.find(workspace.lab, workspace.root) is None:
        return
    missing = [name for name, image in session.outlook().images.items() if not image.digests]
    if not missing:
        return
    what = f"this would replace every machine of {workspace.lab}, and there is no terminal for a question"
    fact = f"images that its machines would be made from are not baked yet: {', '.join(missing)}"
    raise UsageError(
        what, fact=fact, remedy="save what you need, then add --yes; `testbed plan` shows every step"
    )


def _before(opened: session.Lab) -> tuple[dict[Key, Properties], bool]:
    """Return the content of the topology that was applied last, and whether it is the same."""
    try:
        applied = session.load_applied(opened.workspace)
    except TestbedError:
        return {}, False
    resources = desired(applied, opened.inputs.plan_inputs)
    return {key: item.properties for key, item in resources.items()}, applied.digest == opened.topology.digest


def held(workspace: Workspace, inputs: Inputs) -> Held | None:
    """Return the data on each machine by the topology that was applied last, or None.

    None stands for a topology that cannot be read.
    """
    try:
        return data_of(desired(session.load_applied(workspace), inputs))
    except TestbedError:
        return None


def require_agreement(plan: Plan, lab: str, *, yes: bool) -> bool:
    """Return whether a person was asked, and has agreed.

    There is no question where nothing is lost, or with --yes.

    Raises:
        UsageError: see `agree`.

    """
    if plan.blocked:
        fact = "\n".join(f"{action.key}: {action.reason}" for action in plan.blocked)
        remedy = f"run `testbed down {lab}` first, then this command; all data in the lab is lost with it"
        raise UsageError(f"the lab {lab} cannot become that while it runs", fact=fact, remedy=remedy)
    losses = [
        f"{action.verb} {action.key}: {render.lost(action).removeprefix('! ')}" for action in plan.destructive
    ]
    if not losses:
        return False
    if yes:
        for loss in losses:
            say(loss)
        return False
    if not attended():
        what = f"this would destroy data in the lab {lab}, and there is no terminal for a question"
        remedy = "save what you need, then add --yes; `testbed plan` shows every step"
        raise UsageError(what, fact="\n".join(losses), remedy=remedy)
    warn(f"This destroys data in the lab {lab}:\n" + "\n".join(f"  {loss}" for loss in losses))
    if not agreed("Go on?"):
        remedy = "change the topology, or agree; `testbed plan` shows every step"
        raise UsageError(f"the lab {lab} was not changed", fact="the answer was no", remedy=remedy)
    return True
