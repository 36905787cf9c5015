"""What the engine needs from the world: protocols that drivers, and the simulator of the tests, fulfil."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from testbed.plan.diff import Action, Observed

Progress = Callable[[str], None]


class Place(Protocol):
    """Where resources live: the outer machine, the controller or a node."""

    @property
    def name(self) -> str:
        """Name of the place."""

    def wait(self) -> None:
        """Return when the place can be observed.

        Raises:
            ProvisioningError: it is not ready before its deadline.

        """

    def recover(self) -> Sequence[str]:
        """Set right what must be before the place can be observed, and return in words what was done.

        Raises:
            ProvisioningError: it cannot be set right.

        """

    def observe(self) -> Observed:
        """Return every resource of this lab that exists here, with live properties."""

    def perform(self, action: Action) -> None:
        """Carry out one action; doing it a second time does no harm.

        Raises:
            ProvisioningError: it could not be done.

        """
