"""Read-only views of machines, workers and guests for checks; every look is evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host as InfraHost

from testbed.drivers.host.payload_program import with_modules
from testbed.drivers.ssh.client import USER, Host
from testbed.drivers.ssh.command_session import LIMIT, Completed
from testbed.errors import InstrumentError
from testbed.lab.session import Lab
from testbed.model.exposure import ExposureCell
from testbed.model.reachability import Cell, ReachMatrix
from testbed.model.topology import Guest, Topology
from testbed.untrusted import bounded_json
from testbed.verify.cleanup import Leavings
from testbed.verify.evidence import Evidence
from testbed.verify.guest_agent import Files, run_in_guest
from testbed.verify.interruptions import Interruptions

ADMINISTRATOR = USER  # the account of machines that the administrator logs in with
_Value = TypeVar("_Value")
Shown = Callable[[bytes], str]


def plain(text: bytes) -> str:
    """Return output as text; octets that are not UTF-8 become replacement characters."""
    return text.decode(errors="replace")


class RecordedBackend(BaseBackend):  # type: ignore[misc] # testinfra has no types
    """A testinfra backend over our ssh connection, as root; every command becomes evidence."""

    NAME = "testbed"

    def __init__(self, machine: MachineView) -> None:
        super().__init__(hostname=machine.name)
        self._machine = machine

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:  # noqa: ANN401 - testinfra's signature
        """Run a command for testinfra."""
        done = self._machine.run(self.get_command(command, *args))
        return self.result(done.status, done.command, done.stdout, done.stderr)


class MachineView:
    """A node or the controller, observed as root over ssh."""

    def __init__(self, host: Host, evidence: Evidence) -> None:
        self._host = host
        self._evidence = evidence
        self.name = host.name
        self.address = host.access.address
        self.infra = InfraHost(RecordedBackend(self))

    def run(
        self, command: str, *, stdin: bytes = b"", timeout: float = 90, shown: Shown = plain
    ) -> Completed:
        """Run a command as root and record it.

        Args:
            shown: formats the output for the evidence.

        Raises:
            InstrumentError: it did not complete, or its output was cut.
        """
        started = time.time()
        try:
            done = self._host.sudo(command, stdin=stdin, timeout=timeout)
        except InstrumentError as error:
            self._evidence.record(self.name, "command", command, f"did not complete: {error.fact}", started)
            raise
        if len(done.stdout) >= LIMIT:
            fact = f"{command[:200]}: {LIMIT} octets and more"
            raise InstrumentError(
                f"{self.name} tells more than is kept of it", fact=fact, remedy="report this as a bug"
            )
        answer = {
            "status": done.status,
            "stdout": shown(done.stdout)[:20_000],
            "stderr": done.stderr[:4000].decode(errors="replace"),
        }
        self._evidence.record(self.name, "command", command, answer, started)
        return done

    def read(self, command: str, *, stdin: bytes = b"", timeout: float = 90, shown: Shown = plain) -> str:
        """Run a command that must succeed, and return its stripped output; see `run`.

        Raises:
            InstrumentError: it failed or did not complete: nothing was observed.
        """
        done = self.run(command, stdin=stdin, timeout=timeout, shown=shown)
        if done.status != 0:
            fact = f"status {done.status}: {done.stderr[-500:].decode(errors='replace').strip()}"
            raise InstrumentError(
                f"a look at {self.name} failed",
                fact=f"{command[:200]}: {fact}",
                remedy="run `testbed status`",
            )
        return done.text.strip()

    def python(
        self,
        program: str,
        request: object,
        timeout: float = 120,
        *,
        function: str = "",
        libraries: Sequence[str] = (),
    ) -> Any:  # noqa: ANN401 - JSON
        """Run a Python program on the machine and return the JSON that it prints.

        The program finds the request in its variable ``REQUEST``.

        Args:
            function: a function of the program that takes the request and returns the answer instead.
            libraries: modules below `testbed.payload` that the program imports, in an order in which each
                imports only earlier ones.

        Raises:
            InstrumentError: it failed, or printed something else.
        """
        whole = f"REQUEST = {request!r}\n{program}"
        if function:
            whole = f"{program}\nimport json\nprint(json.dumps({function}({request!r})))\n"
        if libraries:
            whole = with_modules(whole, libraries)
        text = self.read("python3 -", stdin=whole.encode(), timeout=timeout)
        try:
            return bounded_json.read(text)
        except ValueError as error:
            fact = f"{text[:200]!r} is no JSON"
            raise InstrumentError(
                f"a probe on {self.name} answered garbage", fact=fact, remedy="repeat the check"
            ) from error


@dataclass
class Fleet:
    """A lab as checks see it.

    Args:
        instruments: the probe's programs in guests and on machines; `testbed.verify.probe.client` keeps
            them.
        shared: observations made once per phase (green, breach, reverted) and used by several checks.
        reach: each matrix cell that was observed while every wall was closed, as a row of plain values, by
            the cell's text.
        focus: id of the one check that this phase is about; empty if it is about all.
        leavings: things that checks have created on the lab and must remove; all views of a lab share it.
        interruptions: times in which no heartbeat counts; all views of a lab share them.
    """

    lab: Lab
    evidence: Evidence
    machines: dict[str, MachineView]
    matrix: ReachMatrix
    shared: dict[str, tuple[Any, list[dict[str, object]]]] = field(default_factory=dict)
    instruments: dict[str, Any] = field(default_factory=dict)
    reach: dict[str, dict[str, object]] = field(default_factory=dict)
    focus: str = ""
    leavings: Leavings = field(default_factory=Leavings)
    interruptions: Interruptions = field(default_factory=Interruptions)

    @classmethod
    def of(cls, lab: Lab, evidence: Evidence) -> Fleet:
        """Return the view of a lab."""
        machines = {
            machine.name: MachineView(lab.host(machine.name), evidence) for machine in lab.topology.machines
        }
        return cls(lab, evidence, machines, ReachMatrix.of(lab.topology))

    @property
    def topology(self) -> Topology:
        """The topology."""
        return self.lab.topology

    def without(self, node: str) -> Fleet:
        """Return a view of the lab without the guests of one node; it shares the instruments."""
        rest = self.topology.without(node)
        return replace(self, lab=replace(self.lab, topology=rest), matrix=ReachMatrix.of(rest), shared={})

    def separate(self) -> Fleet:
        """Return a view of the same lab for checks that run beside others.

        Evidence and observations are its own.
        """
        evidence = self.evidence.separate()
        machines = {name: MachineView(self.lab.host(name), evidence) for name in self.machines}
        return replace(self, evidence=evidence, machines=machines, shared={}, instruments={})

    def observe_once(self, name: str, observe: Callable[[], _Value]) -> _Value:
        """Return an observation of this phase, made now or by an earlier check.

        Raises:
            InstrumentError: the observation failed, now or earlier; a second attempt would take as long and
                fail alike.
        """
        if name not in self.shared:
            before = self.evidence.entries
            try:
                value: _Value | InstrumentError = observe()
            except InstrumentError as error:
                value = error
            self.shared[name] = (value, [entry for entry in self.evidence.entries if entry not in before])
        found, entries = self.shared[name]
        self.evidence.share(entries)
        if isinstance(found, InstrumentError):
            raise found
        result: _Value = found
        return result

    def everywhere(self, do: Callable[[MachineView], _Value]) -> dict[str, _Value]:
        """Call a function for every node in parallel; return the results by node."""
        nodes = [node.name for node in self.topology.nodes]
        with ThreadPoolExecutor(max_workers=min(len(nodes), 8)) as pool:
            return dict(zip(nodes, pool.map(lambda name: do(self.machines[name]), nodes), strict=True))

    def observed(self, name: str) -> Any | None:  # noqa: ANN401 - as `observe_once`
        """Return the value of an observation that was made in this phase, or None."""
        return self.shared[name][0] if name in self.shared else None

    def new_phase(self, focus: str = "") -> None:
        """Discard shared observations, since the lab has changed."""
        self.shared.clear()
        self.focus = focus

    def record_state(self, cell: Cell | ExposureCell, *, arrived: bool) -> None:
        """Record the observed state of a cell, unless a breach is in force."""
        if not self.focus:
            self.reach[str(cell)] = cell.as_row(arrived)

    def needs(self, control: str) -> bool:
        """Return whether this phase needs the observations of a control's check."""
        return self.focus in ("", control)

    def volume_key(self, guest: Guest) -> bytes:
        """Return the key of a guest's volumes; it must go to standard inputs only, which are no evidence."""
        return self.lab.nodes[guest.node].keys.key(guest.node, guest.tenant)

    def files_of(self, guest: Guest) -> Files:
        """Return access to a guest's files; their content is untrusted."""
        return Files(self.lab.nodes[guest.node], guest)

    def in_guest(self, guest: Guest, argv: list[str], stdin: bytes = b"", timeout: float = 90) -> bytes:
        """Run a program in a guest and return its standard output, which is untrusted.

        Raises:
            InstrumentError: the guest does not answer, or the program fails.

        """
        started = time.time()
        request = f"{' '.join(argv)} ({len(stdin)} bytes of input)"
        try:
            done = run_in_guest(self.lab.nodes[guest.node], guest, argv, stdin, timeout)
        except InstrumentError as error:
            self.evidence.record(guest.label, "guest", request, f"did not complete: {error.fact}", started)
            raise
        answer = {"status": done.status, "stdout": plain(done.stdout)[:20_000]}
        self.evidence.record(guest.label, "guest", request, answer, started)
        if done.status != 0:
            fact = f"status {done.status}: {done.stderr[-400:].decode(errors='replace')!r}"
            raise InstrumentError(
                f"a probe in {guest.label} failed", fact=fact, remedy="run `testbed status`"
            )
        return done.stdout
