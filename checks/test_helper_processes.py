"""Processes that serve guests beside their workers, as an attacker sees them who has taken one over."""

from __future__ import annotations

from checks.support.breaches import needs_guest, shell_breach
from checks.support.judging import judging
from testbed.plan.host_config.helper import CONFINED, PROCESSES, PROFILE, PROFILE_FILE, PROGRAM, UNIT
from testbed.verify.attackers import helper
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView

_SHOWN = 6
_FOREIGN = "foreign-helper"
_DROP_IN = f"/run/systemd/system/{UNIT}.d/undeclared.conf"
_RULES = "'capability dac_override,' '/var/lib/testbed/pools/** rw,'"
# What Debian's unit and ours give virtlogd, as far as another one needs it beside the first.
_CONFINING = {
    "AppArmorProfile": PROFILE,
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    "PrivateNetwork": "yes",
    "TemporaryFileSystem": "/run",
    "InaccessiblePaths": "/etc/shadow /var/lib/libvirt /var/lib/testbed",
    "PrivateDevices": "yes",
    "ProtectKernelTunables": "yes",
    "RestrictNamespaces": "yes",
    "SystemCallFilter": "~@debug @module @mount connect",
    "SystemCallErrorNumber": "EPERM",
}
_LOADED = "/sys/kernel/security/apparmor/profiles"


def _foreign(name: str, **changed: str) -> Breach:
    """Return a breach: a second virtlogd, with sockets of its own.

    Args:
        name: the breach.
        changed: properties of its unit that differ from `_CONFINING` (systemd.exec(5)).
    """
    properties = " ".join(f"-p '{key}={value}'" for key, value in {**_CONFINING, **changed}.items())
    process = f"/proc/$(systemctl show -P MainPID {_FOREIGN})/exe"
    runs = f"systemctl is-active -q {_FOREIGN} && [ {process} -ef {PROGRAM} ]"
    return shell_breach(
        name,
        opens=lambda _: (
            f"systemd-run -q --collect --unit={_FOREIGN} {properties} {PROGRAM}; "
            f"for look in $(seq 60); do {runs} && sleep 1 && {runs} && exit 0; sleep 0.5; done; exit 1"
        ),
        closes=lambda _: f"systemctl stop {_FOREIGN} 2>/dev/null; ! systemctl is-active -q {_FOREIGN}",
        shows=lambda _: runs,
    )


# A process that has lost its profile takes it on when it starts itself again.
_AGAIN = (
    f"apparmor_parser -r -W {PROFILE_FILE}; for look in $(seq 60); do "
    f"[ \"$({PROCESSES.removesuffix('; true')} | cut -d' ' -f2-)\" = '{CONFINED}' ] && exit 0; "
    f"[ $look -gt 1 ] || systemctl reload {UNIT}; sleep 0.5; done; exit 1"
)


@check(
    id="PRC-06",
    objective="Every process that serves guests beside their workers is confined like a worker",
    severity="medium",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "the profile of virtlogd only complains",
            opens=lambda _: f"apparmor_parser -r -C {PROFILE_FILE}",
            closes=lambda _: f"apparmor_parser -r -W {PROFILE_FILE}",
            shows=lambda _: f"grep -qx '{PROFILE} (complain)' {_LOADED}",
        ),
        shell_breach(
            "the profile of virtlogd is not loaded",
            opens=lambda _: f"apparmor_parser -R {PROFILE_FILE}",
            closes=lambda _: _AGAIN,
            shows=lambda _: f"! grep -q '^{PROFILE} ' {_LOADED}",
        ),
        shell_breach(
            "the profile of virtlogd lets it open volumes of tenants",
            opens=lambda _: (
                f"sed -i '/^}}$/d' {PROFILE_FILE} && printf '  %s\\n' {_RULES} >> {PROFILE_FILE} && "
                f"echo '}}' >> {PROFILE_FILE} && apparmor_parser -r -W {PROFILE_FILE}"
            ),
            closes=lambda _: (
                f"sed -i -e '/^  capability /d' -e '\\#^  /var/lib/testbed/#d' {PROFILE_FILE}; "
                f"apparmor_parser -r -W {PROFILE_FILE}"
            ),
            shows=lambda _: f"grep -q '^  /var/lib/testbed/' {PROFILE_FILE}",
        ),
        shell_breach(
            "the unit of virtlogd gives it a capability",
            opens=lambda _: (
                f"mkdir -p {_DROP_IN.rpartition('/')[0]} && "
                f"printf '[Service]\\nCapabilityBoundingSet=CAP_DAC_OVERRIDE\\n' > {_DROP_IN} && "
                "systemctl daemon-reload"
            ),
            closes=lambda _: f"rm -rf {_DROP_IN.rpartition('/')[0]}; systemctl daemon-reload",
            shows=lambda _: f"systemctl show -P CapabilityBoundingSet {UNIT} | grep -q cap_dac_override",
        ),
        _foreign("a helper runs without a profile", AppArmorProfile="unconfined"),
        _foreign("a helper has a capability", CapabilityBoundingSet="CAP_DAC_OVERRIDE"),
        _foreign(
            "a helper may connect to sockets that take orders from root",
            SystemCallFilter="~@debug @module @mount",
            BindPaths="/run/dbus",
        ),
    ),
)
def test_helpers_are_confined_like_workers(fleet: Fleet, node: MachineView) -> None:
    with judging(f"the helpers of {node.name}"):
        found = helper.findings(fleet, node)
    assert not found.loose, f"{len(found.loose)} faults: {'; '.join(found.loose[:_SHOWN])}"
    assert not found.reached, f"{len(found.reached)} attempts succeeded: {'; '.join(found.reached[:_SHOWN])}"
