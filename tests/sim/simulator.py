"""A world without machines: places that remember resources, and can be told to fail or to be killed."""

from __future__ import annotations

from dataclasses import dataclass, field

from testbed.errors import ProvisioningError
from testbed.model.environment import Accelerator, Environment
from testbed.plan.diff import Action, Observed
from testbed.plan.resources import OUTER, Inputs, Key, Kind, Properties

INPUTS = Inputs(
    Environment(Accelerator.TCG, Accelerator.KVM, 4.0, "/usr/bin/qemu-system-x86_64"),
    {"node": "digest-n", "controller": "digest-c", "guest": "digest-g"},
)


class Killed(BaseException):
    """Stands for SIGKILL."""


@dataclass
class World:
    """What exists, in all places.

    Args:
        failing: keys whose actions fail.
        fuse: number of actions after which the process is killed; None for never.
    """

    resources: dict[Key, dict[str, object]] = field(default_factory=dict)
    failing: set[Key] = field(default_factory=set)
    fuse: int | None = None
    performed: list[Action] = field(default_factory=list)

    def place(self, name: str) -> SimulatedPlace:
        """Return one place of this world."""
        return SimulatedPlace(self, name)


@dataclass
class SimulatedPlace:
    """A place of a simulated world."""

    world: World
    name: str

    def wait(self) -> None:
        """A machine that does not run never answers."""
        if self.name != OUTER and Key(OUTER, Kind.MACHINE, self.name) not in self.world.resources:
            raise ProvisioningError(
                f"{self.name} does not answer", fact="it does not run", remedy="run `testbed up`"
            )

    def recover(self) -> tuple[str, ...]:
        """Nothing: this world has no services."""
        return ()

    def observe(self) -> Observed:
        """Return what exists here."""
        found: dict[Key, Properties] = {}
        for key, properties in list(self.world.resources.items()):
            if key.place == self.name:
                found[key] = dict(properties)  # type: ignore[arg-type]
        return found

    def perform(self, action: Action) -> None:
        """Carry out one action; a resource must not exist before what it needs."""
        if self.world.fuse is not None and len(self.world.performed) >= self.world.fuse:
            raise Killed
        if action.key in self.world.failing:
            raise ProvisioningError(f"cannot {action.verb}", fact="told to fail", remedy="stop telling it")
        if action.resource is None:
            self.world.resources.pop(action.key, None)
            if action.key.kind is Kind.MACHINE:
                self._lose(action.key.name)
        else:
            missing = [key for key in action.resource.after if key not in self.world.resources]
            assert not missing, f"{action} came before {missing}"
            if action.key.kind is Kind.MACHINE and action.key in self.world.resources:
                self._lose(action.key.name)
            self.world.resources[action.key] = dict(action.resource.properties)
        self.world.performed.append(action)

    def _lose(self, machine: str) -> None:
        for key in [key for key in self.world.resources if key.place == machine]:
            del self.world.resources[key]
