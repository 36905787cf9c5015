"""Files of machines, compared with what was there when memory was saved; the check changes nothing."""

from __future__ import annotations

from checks.support.breaches import shell_breach
from checks.support.judging import require_read
from testbed.verify import machine_reference
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView

_SHOWN = 6
_PROGRAM = "/usr/sbin/nft"
_PADDING = 15  # the last octet of e_ident, which nothing reads (elf(5))
_SETUID = "/usr/local/bin/undeclared"
_LIBRARIES = "/etc/ld.so.conf.d/undeclared.conf"
_DROP_IN = "/run/systemd/system/nftables.service.d"


def _write(octet: str) -> str:
    return f"printf '\\{octet}' | dd of={_PROGRAM} bs=1 seek={_PADDING} conv=notrunc status=none"


@check(
    id="VMM-01",
    objective="Every program of a machine, and what starts it, is what its image holds",
    severity="critical",
    effect=Effect.OBSERVES,
    applies=lambda context: machine_reference.missing(context.lab, context.case),
    breaches=(
        shell_breach(
            "one octet of the firewall's program is another",
            opens=lambda _: _write("001"),
            closes=lambda _: _write("000"),
            shows=lambda _: f"[ $(od -An -tu1 -j{_PADDING} -N1 {_PROGRAM}) = 1 ]",
        ),
        shell_breach(
            "a drop-in lets a service start another program",
            opens=lambda _: (
                f"mkdir -p {_DROP_IN}; "
                f"printf '[Service]\\nExecStartPost=/bin/true\\n' > {_DROP_IN}/undeclared.conf"
            ),
            closes=lambda _: f"rm -rf {_DROP_IN}",
            shows=lambda _: f"[ -e {_DROP_IN}/undeclared.conf ]",
        ),
        shell_breach(
            "a program gives every account the rights of root",
            opens=lambda _: f"install -m 4755 /bin/true {_SETUID}",
            closes=lambda _: f"rm -f {_SETUID}",
            shows=lambda _: f"[ -u {_SETUID} ]",
        ),
        shell_breach(
            "libraries are looked for where every account may write",
            opens=lambda _: f"echo /var/tmp > {_LIBRARIES}",
            closes=lambda _: f"rm -f {_LIBRARIES}",
            shows=lambda _: f"[ -e {_LIBRARIES} ]",
        ),
    ),
)
def test_programs_are_what_the_image_holds(fleet: Fleet, machine: MachineView) -> None:
    found = machine_reference.state(fleet, machine.name)
    told = [str(item) for item in found.findings if "VMM-01" in item.controls]
    assert not told, "\n".join((f"{len(told)} things are not as in the image:", *told[:_SHOWN]))
    require_read(machine.name, found.gaps)
