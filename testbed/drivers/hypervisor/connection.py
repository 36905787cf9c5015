"""Connections to libvirt on the outer machine or a node; no other file imports libvirt (D1)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

# libvirt reads this once, when it is loaded. Its log stays off the terminal: exceptions carry the messages.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")

import libvirt
import libvirt_qemu

from testbed import timeouts
from testbed.deadline import ProgressDeadline
from testbed.drivers.host.accounts import Account
from testbed.drivers.host.private_files import OWNER, PASSABLE, make_folder, write_secret
from testbed.drivers.hypervisor.qmp import Monitor
from testbed.drivers.ssh.command_session import closing_after
from testbed.errors import InstrumentError, ProvisioningError, TestbedError
from testbed.plan.libvirt_xml.machine import parsed, read_mark
from testbed.untrusted import bounded_json
from testbed.untrusted.text import line

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}
_KEEPALIVE_S, _KEEPALIVE_COUNT = 10, 6
_ENDING = ("shut off", "unknown")  # states of a domain whose status file libvirt will remove
_SETTLE_S = 30.0  # seconds until libvirt must know the domains that it started before
_LONGEST = timeouts.LIBVIRT
_AGENT_TRIES, _UNHEARD = 3, "synchronization"  # in libvirt's message if the agent never received the command
_XML, _DOMAINS = 2**19, 4096  # characters of a description, and domains of one libvirt
_LOOK_S = 5.0  # seconds between looks at whether a domain still runs, while an event is awaited
_QEMU_CONF = """\
stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
dump_guest_core = 0
remember_owner = 0
dynamic_ownership = 0
user = "+{uid}"
group = "+{gid}"
"""  # with dynamic ownership, libvirt would chown the shared images under a machine's disks, too
_PASSED = ("lib", "run", "log", "cache")  # folders of the embedded libvirt that emulators pass through
_loop: threading.Thread | None = None
_loop_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as libvirt reports it."""

    name: str
    uuid: str
    state: str
    xml: str


def library_version() -> int:
    """Return the version of the libvirt library: 1,000,000 × major + 1,000 × minor + release."""
    return int(libvirt.getVersion())


def started(root: Path) -> set[str]:
    """Return the names of domains that an embedded libvirt has started, by their status files."""
    return {path.stem for path in (root / "run/qemu").glob("*.xml")}


def _start_loop() -> None:
    """Run libvirt's event loop in a thread; the embedded driver needs it before it is opened."""
    global _loop  # noqa: PLW0603 - libvirt has one loop per process
    with _loop_lock:
        if _loop is None:
            libvirt.virEventRegisterDefaultImpl()
            libvirt.registerErrorHandler(lambda *_: None, None)
            _loop = threading.Thread(target=_run_loop, daemon=True)
            _loop.start()


def _run_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


@contextmanager
def _said(what: str, error: type[TestbedError] = ProvisioningError) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as failure:
        fact = line(f"libvirt says: {failure.get_error_message() or failure}")
        raise error(
            what, fact=fact, remedy="run `testbed status`; `testbed up` repairs what it can"
        ) from failure
    except (
        SystemError,
        UnicodeDecodeError,
    ) as failure:  # libvirt passes on octets of a guest in its messages
        if not isinstance(failure.__cause__ or failure, UnicodeDecodeError):
            raise
        raise error(
            what, fact="libvirt passes on text that is not UTF-8", remedy="rebuild the guest"
        ) from failure


def _bounded(xml: str) -> str:
    """Return a domain's XML as a node sent it; raise if it is longer than any of ours can be."""
    if len(xml) > _XML:
        fact = f"its XML has {len(xml)} characters"
        raise ProvisioningError(
            "a virtual machine cannot be read",
            fact=fact,
            remedy="run `testbed status`, then rebuild the node",
        )
    return xml


def _ask_agent(domain: Any, request: str, timeout: int, tries: int = _AGENT_TRIES) -> str:  # noqa: ANN401 - libvirt has no types
    """Return an agent's answer; try again if the agent never received the command.

    libvirt synchronizes with the agent first, with a limit of five seconds. If this fails, the command was
    not sent, and it is safe to repeat it.
    """
    try:
        return str(libvirt_qemu.qemuAgentCommand(domain, request, timeout, 0))
    except libvirt.libvirtError as error:
        if (
            tries > 1
            and error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE
            and _UNHEARD in (error.get_error_message() or "")
        ):
            return _ask_agent(domain, request, timeout, tries - 1)
        raise
    except SystemError as error:  # the interrupt came while libvirt-python's own handler of errors ran
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise error.__cause__ from None
        raise


class Hypervisor:
    """One libvirt connection."""

    def __init__(
        self, uri: str, embedded: Path | None = None, cut: Callable[[], object] = lambda: None
    ) -> None:
        """Open the connection.

        Args:
            uri: any libvirt URI.
            embedded: root folder of an embedded libvirt; the constructor waits until the running domains are
                known again.
            cut: closes the transport of the connection; called if the other side does not answer in time.

        Raises:
            ProvisioningError: the connection cannot be opened, or running domains are not found again.

        """
        self._asked: dict[
            str, Any
            # domains by name: each agent gets dozens of commands, and a look-up costs a fifth of a command
        ] = {}
        self._cut = cut
        _start_loop()
        with _said(f"cannot open the hypervisor {uri}"), closing_after(_LONGEST, cut):
            self._connection = libvirt.open(uri)
            if "unix" in uri:  # without it, a call to a node that hangs would never return
                self._connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)
        if embedded is not None:
            try:
                self._settle(embedded)
            except TestbedError:
                self._connection.close()
                raise

    @classmethod
    def embed(cls, root: Path, account: Account) -> Hypervisor:
        """Open libvirt's QEMU driver inside this process, with its files below a folder.

        Args:
            root: folder for the files.
            account: account of the emulators; it must own their files, or all accounts must be able to read
                them.

        """
        make_folder(root / "etc", OWNER)
        for name in _PASSED:
            make_folder(root / name, PASSABLE)
        write_secret(root / "etc/qemu.conf", _QEMU_CONF.format(uid=account.uid, gid=account.gid).encode())
        return cls(f"qemu:///embed?root={quote(str(root))}", root)

    def _settle(self, root: Path) -> None:
        """Wait until libvirt knows each domain with a status file again, or has removed the file.

        Args:
            root: root folder of the embedded libvirt.

        Raises:
            ProvisioningError: a domain is not known after 30 s; it may run unseen, and a second one of its
                name would write to the same disks.

        """
        end = time.monotonic() + _SETTLE_S
        while True:
            left = started(root) - {domain.name for domain in self.domains() if domain.state not in _ENDING}
            if not left:
                return
            if time.monotonic() > end:
                fact = f"after {_SETTLE_S:.0f} s libvirt does not know: {', '.join(sorted(left))}"
                remedy = "run the command again; if it fails again, `testbed down`, which ends them"
                raise ProvisioningError(
                    "machines that were started are not found again", fact=fact, remedy=remedy
                )
            time.sleep(0.1)

    def domains(self) -> list[Domain]:
        """Return every domain."""
        with _said("cannot list domains"), closing_after(_LONGEST, self._cut):
            found = self._connection.listAllDomains()
        if len(found) > _DOMAINS:
            raise ProvisioningError(
                "domains cannot be listed", fact=f"there are {len(found)}", remedy="rebuild the node"
            )
        result = []
        for domain in found:
            try:
                state = _STATES.get(domain.state()[0], "unknown")
                result.append(Domain(domain.name(), domain.UUIDString(), state, _bounded(domain.XMLDesc())))
            except libvirt.libvirtError:
                continue
        return result

    def count(self) -> int:
        """Return how many domains run; the least that libvirt can be asked for.

        Raises:
            InstrumentError: it does not answer.

        """
        with _said("cannot count domains", InstrumentError):
            return int(self._connection.numOfDomains())

    def owned(self, lab: str) -> Iterator[tuple[Domain, str, dict[str, object]]]:
        """Yield the domains with a lab's mark, each with its resource's name and properties."""
        for domain in self.domains():
            mark = read_mark(domain.xml)
            if mark is not None and mark[0] == lab:
                yield domain, mark[1], mark[2]

    def _find(self, name: str) -> Any:  # noqa: ANN401 - libvirt has no types
        try:
            self._asked[name] = self._connection.lookupByName(name)
            return self._asked[name]
        except libvirt.libvirtError as error:
            fact = error.get_error_message() or "no such domain"
            raise InstrumentError(f"{name} does not run", fact=fact, remedy="run `testbed up`") from error

    def create(self, xml: str, *, paused: bool = False) -> None:
        """Start a transient domain.

        Args:
            xml: description of the domain.
            paused: its processors do not run until `resume`.

        """
        with _said("cannot start a virtual machine"):
            self._connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def restore(self, path: str) -> None:
        """Start a transient domain from a save file on its host; it is paused until `resume`."""
        with _said("cannot start a virtual machine from saved memory"):
            self._connection.restoreFlags(path, None, libvirt.VIR_DOMAIN_SAVE_PAUSED)

    def resize_disk(self, name: str, target: str, size: int) -> None:
        """Set the size of a running domain's disk.

        Args:
            name: name of the domain.
            target: name of the disk in the guest, or path of its file.
            size: bytes.

        """
        with _said(f"cannot change the disk {target} of {name}"):
            self._find(name).blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    def set_limits(self, name: str, *, memory: int, weight: int, quota: tuple[int, int]) -> None:
        """Set the limits of memory and CPU of a running domain.

        Args:
            name: name of the domain.
            memory: bytes.
            weight: its share of the CPU.
            quota: microseconds of a period that it may use, and the period.

        """
        scheduler = {"cpu_shares": weight, "global_period": quota[1], "global_quota": quota[0]}
        with _said(f"cannot limit {name}"), closing_after(_LONGEST, self._cut):
            domain = self._find(name)
            domain.setMemoryParameters({"hard_limit": memory // 1024}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            domain.setSchedulerParametersFlags(scheduler, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def throttle_disk(self, name: str, target: str, group: str, *, operations: int, octets: int) -> None:
        """Set the limits of a running domain's disk, which it shares with others of its group.

        Args:
            name: name of the domain.
            target: name of the disk in the guest.
            group: name of the group.
            operations: per second; 0 is no limit.
            octets: likewise, bytes per second.

        """
        limits = {
            "total_iops_sec": operations,
            "total_bytes_sec": octets,
            "total_iops_sec_max": 0,
            "total_bytes_sec_max": 0,
            "group_name": group,
        }
        with _said(f"cannot limit the disk {target} of {name}"), closing_after(_LONGEST, self._cut):
            self._find(name).setBlockIoTune(target, limits, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def destroy(self, name: str) -> None:
        """Stop a domain at once; a missing domain is no error."""
        try:
            domain = self._find(name)
        except InstrumentError:
            return
        with _said(f"cannot stop {name}"):
            try:
                domain.destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # it may just have ended by itself
                    raise

    def runs(self, name: str) -> bool:
        """Return whether a domain exists and is running."""
        return any(domain.name == name and domain.state == "running" for domain in self.domains())

    def resume(self, name: str) -> None:
        """Resume a paused domain."""
        with _said(f"cannot resume {name}"):
            self._find(name).resume()

    def reset(self, name: str) -> None:
        """Reset a domain, as its reset button would."""
        with _said(f"cannot reset {name}"):
            self._find(name).reset()

    def attach(self, name: str, device: str) -> None:
        """Plug a device, described in XML, into a running or paused domain."""
        with _said(f"cannot plug a device into {name}"):
            self._find(name).attachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def live_xml(self, name: str) -> str:
        """Return the XML that starts a domain again with its present hardware.

        Devices that were plugged in later are included.
        """
        with _said(f"cannot describe {name}"):
            return str(
                self._find(name).XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            )

    def entitle(self, name: str, title: str) -> None:
        """Set the title of a running domain; the empty string removes it."""
        with _said(f"cannot change the title of {name}"):
            self._find(name).setMetadata(
                libvirt.VIR_DOMAIN_METADATA_TITLE, title or None, None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE
            )

    def secrets(self) -> dict[str, str]:
        """Return the XML of every secret, by its UUID; it does not hold the value."""
        with _said("cannot list secrets"), closing_after(_LONGEST, self._cut):
            found = self._connection.listAllSecrets()
        if len(found) > _DOMAINS:
            raise ProvisioningError(
                "secrets cannot be listed", fact=f"there are {len(found)}", remedy="rebuild the node"
            )
        result = {}
        for secret in found:
            with suppress(libvirt.libvirtError):
                result[secret.UUIDString()] = _bounded(secret.XMLDesc())
        return result

    def define_secret(self, xml: str, value: bytes, marked: str) -> None:
        """Define a secret, give it its value, then its mark: a mark stands for a value that is set.

        Args:
            xml: description of the secret without the mark.
            value: its value.
            marked: description with the mark.

        """
        with _said("cannot define a secret"):
            self._connection.secretDefineXML(xml).setValue(value)
            self._connection.secretDefineXML(marked)

    def undefine_secret(self, uuid: str) -> None:
        """Remove a secret and its value; a missing one is no error."""
        with _said("cannot remove a secret"):
            try:
                self._connection.secretLookupByUUIDString(uuid).undefine()
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                    raise

    def suspend(self, name: str) -> None:
        """Pause a domain."""
        with _said(f"cannot pause {name}"):
            self._find(name).suspend()

    @contextmanager
    def backup(self, name: str, description: str) -> Iterator[None]:
        """Let a domain's QEMU offer disks as they are now, for the duration of the block.

        A backup that a killed process has left is ended first.

        Args:
            name: of the domain, which runs on meanwhile.
            description: a ``domainbackup`` of mode pull, whose scratch files exist.

        """
        domain = self._find(name)
        with _said(f"the disks of {name} cannot be read"):
            if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
                domain.abortJob()
            domain.backupBegin(description, None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)
        try:
            yield
        finally:
            with _said(f"a backup of {name} does not end"):
                domain.abortJob()

    def monitor(self, name: str) -> Monitor:
        """Return the monitor of a domain's QEMU."""
        domain = self._find(name)

        def ask(request: str, files: Sequence[int]) -> str:
            with _said(f"the monitor of {name} does not answer"):
                answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, request, list(files))
                return str(answer)

        return Monitor(ask)

    def ask_monitor(self, name: str, command: str, arguments: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
        """Return the answer of a domain's QEMU to a command; it is untrusted input (D5).

        Raises:
            InstrumentError: no answer in time, or a refusal, or an answer that is not valid.

        """
        request = json.dumps({"execute": command, "arguments": arguments})
        what = f"the monitor of {name} does not answer {command}"
        with _said(what, InstrumentError), closing_after(_LONGEST, self._cut):
            text = libvirt_qemu.qemuMonitorCommand(self._find(name), request, 0)
        try:
            return bounded_json.read(text)["return"]
        except (ValueError, KeyError, TypeError) as error:
            raise InstrumentError(what, fact=line(text[:400]), remedy="run `testbed status`") from error

    def disk_reads(self, name: str) -> str:
        """Return how often a domain has read from its disks: a sign of progress, since a boot reads.

        It is empty if libvirt does not tell.
        """
        with (
            suppress(InstrumentError),
            _said("no reads", InstrumentError),
            closing_after(_LONGEST, self._cut),
        ):
            return f"{self._find(name).blockStats('')[0]} reads of its disks"
        return ""

    def wait_for_agent(self, name: str, deadline: ProgressDeadline) -> None:
        """Wait until a guest's agent has connected, by libvirt's event.

        Commands are not used for polling: each early one costs a line in the log of a host that is busy
        booting guests.

        Args:
            name: name of the domain.
            deadline: until when.

        Raises:
            InstrumentError: the agent does not connect in time, or the domain ends.

        """
        domain, connected = self._find(name), threading.Event()

        def changed(_connection: object, _domain: object, state: int, *_: object) -> None:
            if state == libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED:
                connected.set()

        event = libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE
        with _said(f"the guest agent of {name} does not connect", InstrumentError):
            number = self._connection.domainEventRegisterAny(domain, event, changed, None)
            try:
                described = parsed(_bounded(domain.XMLDesc()))
                connected_before = described.find("devices/channel/target[@state='connected']")
                while connected_before is None and not connected.wait(_LOOK_S):
                    if not (active := domain.isActive()) or deadline.over():
                        fact = f"not {deadline.reason}" if active else "the domain has ended"
                        what = f"the guest agent of {name} does not connect"
                        raise InstrumentError(what, fact=fact, remedy="run `testbed up`")
            finally:
                self._connection.domainEventDeregisterAny(number)

    def agent(self, name: str, command: str, arguments: dict[str, object], timeout: int) -> dict[str, Any]:
        """Send a command to the guest agent and return its answer, which is untrusted input (D5).

        Args:
            name: name of the domain.
            command: name of the command.
            arguments: arguments of the command.
            timeout: seconds.

        Raises:
            InstrumentError: no answer in time, or an answer that is not valid.

        """
        request = json.dumps({"execute": command, "arguments": arguments})
        late = closing_after(timeout + _LONGEST, self._cut)
        with _said(f"the guest agent of {name} does not answer", InstrumentError), late:
            try:
                text = _ask_agent(self._asked.get(name) or self._find(name), request, timeout)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN or name not in self._asked:
                    raise
                text = _ask_agent(self._find(name), request, timeout)
        try:
            answer = bounded_json.read(text)["return"]
        except (ValueError, KeyError, TypeError) as error:
            fact = f"{len(text)} characters that are no answer"
            raise InstrumentError(
                f"the guest agent of {name} answers garbage", fact=fact, remedy="rebuild the guest"
            ) from error
        return answer if isinstance(answer, dict) else {"value": answer}

    def close(self) -> None:
        """Close the connection; domains run on."""
        # each domain object holds a reference to the connection, which would stay open after its server ends
        self._asked.clear()
        with _said("cannot close the hypervisor"):
            self._connection.close()
