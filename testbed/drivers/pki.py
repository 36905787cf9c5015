"""A lab's certificate authorities, and what they sign (D6).

One Ed25519 key signs ssh certificates of users and hosts; one ECDSA key signs the X.509 certificates of
machines, because OpenSSL reads those everywhere, and another those of administrators, so that a fallen
machine is none of them (NET-08). All stay in the lab's own folder, mode 0600, and end with the lab.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from testbed.drivers.host.private_files import OWNER, make_folder, write_secret

_SKEW = timedelta(minutes=10)
USER_LIFETIME = timedelta(hours=12)
HOST_LIFETIME = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class SshIdentity:
    """An ssh key with its certificate, in OpenSSH's text formats."""

    private_key: bytes
    certificate: bytes
    public_key: str


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A TLS key with its certificate, in PEM."""

    private_key: bytes
    certificate: bytes


class Authority:
    """The lab's certificate authorities, made on first use."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder, OWNER)
        self._folder = folder
        ssh_key = _stored_key(folder / "ssh-ca.pem", ed25519.Ed25519PrivateKey.generate)
        if not isinstance(ssh_key, ed25519.Ed25519PrivateKey):
            msg = f"{folder} holds keys of an unexpected kind"
            raise TypeError(msg)
        self._ssh_key = ssh_key
        self._machines = _Issuer.stored(folder, "tls-ca", "testbed lab authority")
        self._administrators = _Issuer.stored(folder, "tls-administrators", "testbed lab administrators")

    @property
    def ssh_public_key(self) -> str:
        """The ssh authority's public key, in OpenSSH's one-line format."""
        return self._ssh_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def user(
        self,
        principals: Sequence[str],
        *,
        now: datetime,
        lifetime: timedelta = USER_LIFETIME,
        start: timedelta = -_SKEW,
        key: bytes | None = None,
    ) -> SshIdentity:
        """Sign a user key for some roles.

        Args:
            principals: roles the certificate stands for.
            now: time from which validity is counted.
            lifetime: how long after ``now`` it ends; negative for an expired one.
            start: when it begins, relative to ``now``.
            key: the private key, in OpenSSH's format; a fresh one if left out.

        """
        return self._ssh(SSHCertificateType.USER, principals, "testbed", (now + start, now + lifetime), key)

    def host(self, name: str, addresses: Sequence[IPv4Address], *, now: datetime) -> SshIdentity:
        """Sign a fresh host key for a machine's name and addresses."""
        principals = [name, *(str(address) for address in addresses)]
        return self._ssh(SSHCertificateType.HOST, principals, name, (now - _SKEW, now + HOST_LIFETIME))

    def _ssh(
        self,
        kind: SSHCertificateType,
        principals: Sequence[str],
        key_id: str,
        valid: tuple[datetime, datetime],
        known: bytes | None = None,
    ) -> SshIdentity:
        key = _ed25519(known) if known else ed25519.Ed25519PrivateKey.generate()
        builder = (
            SSHCertificateBuilder()
            .public_key(key.public_key())
            .serial(int.from_bytes(os.urandom(7)))
            .type(kind)
            .key_id(key_id.encode())
            .valid_principals([principal.encode() for principal in principals])
            .valid_after(int(valid[0].timestamp()))
            .valid_before(int(valid[1].timestamp()))
        )
        if kind is SSHCertificateType.USER:
            builder = builder.add_extension(b"permit-pty", b"")
        certificate = builder.sign(self._ssh_key)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return SshIdentity(private, certificate.public_bytes() + b"\n", public + "\n")

    def tls(self, name: str, *, now: datetime) -> TlsIdentity:
        """Sign a machine's TLS key: OVN's roles compare its common name with the chassis, IPsec its other
        name with the peer.
        """
        return self._machines.sign(name, now - _SKEW, now + HOST_LIFETIME)

    def administrator(self, name: str, *, start: datetime, now: datetime) -> TlsIdentity:
        """Sign the TLS key of somebody who may change OVN's northbound database, from some time on."""
        return self._administrators.sign(name, start, now + HOST_LIFETIME)

    @property
    def born(self) -> datetime:
        """From when on this authority's certificates can be valid."""
        return self._machines.certificate.not_valid_before_utc

    @property
    def tls_ca(self) -> bytes:
        """The certificate of the authority of machines, in PEM."""
        return self._machines.certificate.public_bytes(Encoding.PEM)

    @property
    def administrators_ca(self) -> bytes:
        """The certificate of the authority of administrators, in PEM."""
        return self._administrators.certificate.public_bytes(Encoding.PEM)


@dataclass(frozen=True, slots=True)
class _Issuer:
    """An authority for X.509 certificates."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def stored(cls, folder: Path, file: str, name: str) -> _Issuer:
        """Return the authority of a file, made if it is not there."""
        key = _stored_key(folder / f"{file}.pem", lambda: ec.generate_private_key(ec.SECP256R1()))
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            msg = f"{folder}/{file}.pem holds a key of an unexpected kind"
            raise TypeError(msg)
        path = folder / f"{file}.crt"
        if not path.exists():
            write_secret(path, _self_signed(key, name).public_bytes(Encoding.PEM))
        return cls(key, x509.load_pem_x509_certificate(path.read_bytes()))

    def sign(self, name: str, start: datetime, end: datetime) -> TlsIdentity:
        """Sign a fresh key for a name."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(usage, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return TlsIdentity(private, certificate.public_bytes(Encoding.PEM))


def _self_signed(key: ec.EllipticCurvePrivateKey, name: str) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _ed25519(private: bytes) -> ed25519.Ed25519PrivateKey:
    key = serialization.load_ssh_private_key(private, password=None)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        msg = "the administrator's key is of an unexpected kind"
        raise TypeError(msg)
    return key


def _stored_key(
    path: Path, generate: Callable[[], ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey]
) -> PrivateKeyTypes:
    if not path.exists():
        pem = generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_secret(path, pem)
    return serialization.load_pem_private_key(path.read_bytes(), password=None)
