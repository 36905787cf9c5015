"""Management walls: who may log in, and who may talk to the hypervisor."""

from __future__ import annotations

from checks.breaches import command
from testbed.errors import InstrumentError
from testbed.model.testbed import FIRST_WORKER_UID, Role
from testbed.plan.settings import SOCKETS
from testbed.verify.credentials import impostors, logins, public_key
from testbed.verify.declare import Breach, Effect, check
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.stage import Stage

_DROP_IN = "/etc/ssh/sshd_config.d/breach.conf"
_KEYS = "/etc/ssh/authorized_keys.breach"


def _plant_key(stage: Stage) -> None:
    stranger = next(item for item in impostors(stage.lab.workspace) if item.name == "unknown key")
    public = public_key(stranger)
    stage.host.must(
        f"printf 'AuthorizedKeysFile {_KEYS}\\n' > {_DROP_IN}; echo '{public}' > {_KEYS}; chmod 0644 {_KEYS}; systemctl reload ssh"
    )


def _remove_key(stage: Stage) -> None:
    stage.host.must(f"rm -f {_DROP_IN} {_KEYS}; systemctl reload ssh")


def _key_planted(stage: Stage) -> bool:
    return stage.host.sudo(f"/usr/sbin/sshd -T | grep -qi 'authorizedkeysfile {_KEYS}'").status == 0


@check(
    id="ACC-02",
    objective="Nobody logs in with anything but a valid certificate of the right role",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    breaches=(Breach("a stranger's key is authorised by a drop-in", _plant_key, _remove_key, _key_planted),),
)
def test_wrong_credentials_never_work(fleet: Fleet, machine: Machine) -> None:
    answers = logins(fleet, machine, impostors(fleet.lab.workspace))
    let_in = sorted(name for name, answer in answers.items() if answer == "accepted")
    assert not let_in, f"{machine.name} let in: {', '.join(let_in)}"


_CONNECT = """\
import errno, json, os, socket
answers = {}
for name, path in REQUEST["paths"].items():
    child_reads, child_writes = os.pipe()
    if os.fork() == 0:
        if REQUEST["uid"]:
            os.setgroups([]); os.setgid(REQUEST["uid"]); os.setuid(REQUEST["uid"])
        try:
            s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(path); word = "open"
        except PermissionError:
            word = "denied"
        except OSError as error:
            word = errno.errorcode.get(error.errno, str(error))
        os.write(child_writes, word.encode()); os._exit(0)
    os.close(child_writes); answers[name] = os.read(child_reads, 100).decode(); os.wait()
print(json.dumps(answers))
"""
_PORTS = "ss -Hlnt | awk '{print $4}' | grep -E ':(16509|16514)$' || true"


@check(
    id="ACC-05",
    objective="Only root reaches libvirt's sockets, and none of them is on a network",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    applies=lambda stage: None if stage.testbed.machine(stage.case).role is Role.NODE else "no hypervisor here",
    breaches=(
        command(
            "libvirt's socket is open to everybody",
            opens=lambda _: f"chmod 0666 {SOCKETS[0]}",
            closes=lambda _: f"chmod 0600 {SOCKETS[0]}",
            shows=lambda _: f"[ $(stat -c %a {SOCKETS[0]}) = 666 ]",
        ),
    ),
)
def test_only_root_reaches_libvirt(fleet: Fleet, node: Machine) -> None:
    def attempts(uid: int) -> dict[str, str]:
        paths = {path: path for path in SOCKETS}
        answers = node.python(_CONNECT, {"uid": uid, "paths": paths})
        return {str(path): str(answer) for path, answer in answers.items()}

    def control() -> None:
        answers = attempts(0)
        if set(answers.values()) != {"open"}:
            raise InstrumentError("root does not reach libvirt", fact=str(answers), remedy="run `testbed up`")

    control()
    admin = int(node.read("id -u admin"))
    for uid in (65534, admin, FIRST_WORKER_UID, FIRST_WORKER_UID + 1):
        reached = [path for path, answer in attempts(uid).items() if answer != "denied"]
        assert not reached, f"uid {uid} reaches {reached}"
    control()
    listeners = node.read(_PORTS)
    assert not listeners, f"libvirt listens on a network: {listeners}"
