"""Accounts, passwords' state, groups, sudo, PAM, polkit, sshd, audit rules, authorities."""

from __future__ import annotations

import hashlib
import os
import re

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread, read
from testbed.payload.inventory.host.files import digests, require

_SHELLS_OFF = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false", "/bin/sync")
_TEXTS = (
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/pam.d",
    "/etc/pam.conf",
    "/etc/security",
    "/etc/polkit-1/rules.d",
    "/usr/share/polkit-1/rules.d",
    "/usr/local/share/polkit-1/rules.d",
    "/run/polkit-1/rules.d",
    "/etc/polkit-1/localauthority",
    "/var/lib/polkit-1/localauthority",
    "/etc/subuid",
    "/etc/subgid",
    "/etc/shells",
    "/etc/securetty",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/hosts.allow",
    "/etc/hosts.deny",
    "/etc/resolv.conf",
    "/etc/login.defs",
    "/etc/environment",
    "/etc/ld.so.preload",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/crontab",
    "/etc/cron.d",
    "/var/spool/cron",
    "/etc/ssh/principals",
    "/etc/ssh/revoked_keys",
)
_AUTHORITIES = (
    "/etc/ssl/certs",
    "/usr/local/share/ca-certificates",
    "/etc/pki",
    "/etc/ipsec.d/cacerts",
    "/etc/swanctl/x509ca",
    "/etc/openvswitch",
    "/etc/ovn",
    "/var/lib/openvswitch/pki",
    "/etc/apt/trusted.gpg.d",
    "/usr/share/keyrings",
    "/etc/apt/keyrings",
    "/etc/ssh",
)
_PUBLIC = (".pem", ".crt", ".cert", ".pub", ".gpg", ".asc", ".0")
_LINES = 2_000
_SSH_FILES = re.compile(
    r"^(authorizedkeysfile|authorizedkeyscommand|authorizedprincipalsfile|authorizedprincipalscommand|trustedusercakeys|revokedkeys|"
    r"hostkey|hostcertificate|banner|xauthlocation|forcecommand|chrootdirectory|securitykeyprovider|"
    r"subsystem) (.+)$"
)


def collect(records: Records) -> None:
    """Record accounts and everything that decides who gets in."""
    users = _accounts(records)
    for path in _TEXTS:
        _text(records, path)
    for part in (_sshd, _audit):
        try:
            part(records, users)
        except Unread as error:
            records.unread(part.__name__.strip("_"), "", error)
    _trust(records)


def _accounts(records: Records) -> dict[str, str]:
    """Record accounts, groups and the state of passwords; return each account's home folder."""
    homes = {}
    for line in require("/etc/passwd").splitlines():
        name, *fields = line.split(":")
        records.add("account", name, fields[1:])
        if len(fields) == 6 and fields[5] not in _SHELLS_OFF:
            homes[name] = fields[4]
    for line in require("/etc/group").splitlines():
        name, _, rest = line.partition(":")
        records.add("group", name, rest.split(":")[1:])
    for file in ("shadow", "gshadow"):
        for line in require(f"/etc/{file}").splitlines():
            name, _, rest = line.partition(":")
            password, *others = rest.split(":")
            records.add("password", f"{file} {name}", {"state": state(password), "others": others})
    for name, home in homes.items():
        for file in (
            ".ssh/authorized_keys",
            ".ssh/authorized_keys2",
            ".rhosts",
            ".shosts",
            ".forward",
            ".profile",
            ".bashrc",
            ".bash_profile",
            ".ssh/rc",
            ".ssh/environment",
            ".k5login",
        ):
            if os.path.lexists(f"{home}/{file}"):
                _text(records, f"{home}/{file}", domain="login file", name=f"{name} {file}")
    return homes


def state(password: str) -> str:
    """Return whether a password is set, and how it is stored; nothing of the password itself."""
    if not password:
        return "none is asked for"
    if password.startswith(("!", "*")):
        return "locked, one is set" if len(password.strip("!*")) > 3 else "locked"
    return f"set, of kind {password.split('$')[1]}" if password.count("$") > 1 else "set"


def _text(records: Records, path: str, domain: str = "access file", name: str = "") -> None:
    """Record the lines of a file, or of each file in a folder, without comments."""
    if os.path.isdir(path):
        for entry in sorted(os.listdir(path)):
            _text(records, f"{path}/{entry}", domain, f"{name}/{entry}" if name else "")
        return
    try:
        lines = require(path).splitlines()
    except Unread as error:
        records.unread(domain, path, error)
        return
    kept = [
        " ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith(("#", "//"))
    ]
    if os.path.lexists(path):
        records.add(domain, name or path, kept[:_LINES])


def _sshd(records: Records, users: dict[str, str]) -> None:
    """Record the settings of sshd, for each account and network if they have conditions."""
    _served(records, "any", programs.run(["sshd", "-T"]))
    texts = [require("/etc/ssh/sshd_config")]
    for folder in ("/etc/ssh/sshd_config.d", "/run/sshd_config.d"):
        texts += [
            require(f"{folder}/{name}") for name in (os.listdir(folder) if os.path.isdir(folder) else [])
        ]
    if not any(line.lstrip().lower().startswith("match") for text in texts for line in text.splitlines()):
        return
    addresses = sorted({"127.0.0.1", "::1", "192.0.2.1", *_networks()})[:8]
    for user in list(users)[:8]:
        for address in addresses:
            try:
                told = programs.run(["sshd", "-T", "-C", f"user={user},host={address},addr={address}"])
            except Unread as error:
                records.unread("sshd", f"{user} {address}", error)
                continue
            _served(records, f"{user} from {address}", told)


def _networks() -> list[str]:
    """Return an address of each network that the machine has an address in."""
    found = []
    for line in read("/proc/net/fib_trie").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in ("|--", "+--") and words[1].count(".") == 3:
            found.append(words[1].partition("/")[0])
    return found


def _served(records: Records, who: str, printed: str) -> None:
    told: dict[str, list[str]] = {}
    for line in printed.splitlines():
        name, _, value = line.partition(" ")
        told.setdefault(name, []).append(value)
    for word, values in told.items():
        records.add("sshd", f"{who} {word}", sorted(values))
    for line in printed.splitlines():
        found = _SSH_FILES.match(line)
        for path in found[2].split() if found else []:
            if path.startswith("/") and "%" not in path:
                _named_file(records, f"{who} {found[1] if found else ''} {path}", path)


def _named_file(records: Records, key: str, path: str) -> None:
    """Record a file that sshd names: owner, mode and, where it holds no secret, its digest."""
    try:
        seen = os.stat(path)
    except OSError as error:
        records.add("sshd file", key, error.strerror)
        return
    told: dict[str, object] = {
        "mode": f"{seen.st_mode & 0o7777:04o}",
        "owner": f"{seen.st_uid}:{seen.st_gid}",
    }
    public = not os.path.basename(path).startswith("ssh_host_") or path.endswith(".pub")
    if public and not os.path.isdir(path):
        told["sha256"] = hashlib.sha256(read(path).encode()).hexdigest()
    records.add("sshd file", key, told)


def _audit(records: Records, _users: dict[str, str]) -> None:
    """Record the rules of the kernel's audit, in their order, and its state."""
    records.add("audit", "rules", programs.run(["auditctl", "-l"]).splitlines())
    kept = ("enabled", "failure", "backlog_limit", "rate_limit", "loginuid_immutable")
    for line in programs.run(["auditctl", "-s"]).splitlines():
        name, _, value = line.partition(" ")
        if name in kept:
            records.add("audit", name, value)


def _trust(records: Records) -> None:
    """Record each certificate and public key that programs take as an authority."""
    own = Records()
    digests(own, "authority", list(_AUTHORITIES))
    for domain, key, value in own.lines:
        if (
            key.endswith(_PUBLIC)
            and "private" not in key
            and "key.pem" not in key
            and not key.endswith(("-privkey.pem", "_key"))
        ):
            records.lines.append((domain, key, value))
