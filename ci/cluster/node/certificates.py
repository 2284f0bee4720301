"""The certificates of the node: three authorities, and one certificate for each part that speaks or is spoken to.

etcd and the API aggregation have authorities of their own, so that no other part's certificate opens etcd or lets
anybody speak in another user's name.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ci.cluster.node.addresses import Addresses
from ci.cluster.node.layout import DOMAIN, NODE
from ci.files import write_atomic

_AUTHORITY_DAYS = 3650
_DAYS = 365
RENEW_DAYS = 60  # renewed when a bring-up finds less left than this
_SKEW = datetime.timedelta(minutes=5)  # clocks differ

CLUSTER, ETCD, FRONT_PROXY = "cluster-ca", "etcd-ca", "front-proxy-ca"
ADMIN_GROUP = "system:masters"


@dataclass(frozen=True)
class Wanted:
    """One certificate: `name` of its files, the authority that signs it, its subject, and where it is served."""

    name: str
    authority: str
    common_name: str
    groups: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()  # DNS names and addresses: makes it a server's certificate
    client: bool = True


def wanted(addresses: Addresses) -> list[Wanted]:
    """Return every certificate of the node but the authorities."""
    api_hosts = (
        *("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"),
        *(NODE, "localhost", addresses.api, addresses.node, "127.0.0.1"),
    )
    loopback = ("localhost", "127.0.0.1")
    return [
        Wanted("etcd", ETCD, "etcd", hosts=loopback),  # etcd's own gateway is a client of etcd
        Wanted("etcd-client", ETCD, "kube-apiserver"),
        Wanted("apiserver", CLUSTER, "kube-apiserver", hosts=api_hosts, client=False),
        Wanted("apiserver-kubelet", CLUSTER, "kube-apiserver-kubelet-client", ("modelwharf:kubelet-clients",)),
        Wanted("front-proxy", FRONT_PROXY, "front-proxy-client"),
        Wanted("controller-manager", CLUSTER, "system:kube-controller-manager"),
        Wanted("controller-manager-serving", CLUSTER, "kube-controller-manager", hosts=loopback, client=False),
        Wanted("scheduler", CLUSTER, "system:kube-scheduler"),
        Wanted("scheduler-serving", CLUSTER, "kube-scheduler", hosts=loopback, client=False),
        Wanted("kubelet", CLUSTER, f"system:node:{NODE}", ("system:nodes",)),
        Wanted("kubelet-serving", CLUSTER, f"system:node:{NODE}", hosts=(NODE, addresses.node), client=False),
        Wanted("kube-proxy", CLUSTER, "system:kube-proxy"),
        Wanted("probe", CLUSTER, "modelwharf:probe"),
        Wanted("admin", CLUSTER, "modelwharf:admin", (ADMIN_GROUP,)),
    ]


def certificate(folder: Path, name: str) -> Path:
    """Return the file of a certificate."""
    return folder / f"{name}.crt"


def key(folder: Path, name: str) -> Path:
    """Return the file of a private key."""
    return folder / f"{name}.key"


def ensure(folder: Path, addresses: Addresses, now: datetime.datetime | None = None) -> list[str]:
    """Make what is missing in `folder`, near its end, or no longer what is wanted; return the names of those made."""
    now = now or datetime.datetime.now(datetime.UTC)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    made: list[str] = []
    for authority in (CLUSTER, ETCD, FRONT_PROXY):
        if not _lasts(folder, authority, now):
            _make_authority(folder, authority, now)
            made.append(authority)
    for one in wanted(addresses):
        if not (_lasts(folder, one.name, now) and _fits(folder, one)):
            _make(folder, one, now)
            made.append(one.name)
    if not (key(folder, "service-account").is_file() and _public(folder).is_file()):
        _make_service_account_key(folder)
        made.append("service-account")
    return made


def _load(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate(folder, name).read_bytes())


def _lasts(folder: Path, name: str, now: datetime.datetime) -> bool:
    """Tell whether certificate and key are there, belong together, and have time left.

    They are two files: somebody who was interrupted between them has left a new key beside an old certificate.
    """
    try:
        found = _load(folder, name)
        private = serialization.load_pem_private_key(key(folder, name).read_bytes(), None)
    except (FileNotFoundError, ValueError):
        return False
    left = found.not_valid_after_utc - now
    return private.public_key() == found.public_key() and left > datetime.timedelta(days=RENEW_DAYS)


def _fits(folder: Path, one: Wanted) -> bool:
    """Tell whether the certificate that is there is signed by the authority that is there and says what is wanted."""
    found = _load(folder, one.name)
    try:
        found.verify_directly_issued_by(_load(folder, one.authority))
    except (InvalidSignature, ValueError, TypeError):
        return False
    try:
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return found.subject == _subject(one) and not one.hosts
    return found.subject == _subject(one) and list(extension.value) == _names(one.hosts)


def _subject(one: Wanted) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in one.groups]
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, one.common_name)])


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in hosts:
        try:
            found.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _make_authority(folder: Path, name: str, now: datetime.datetime) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"modelwharf {name}")])
    signed = (
        _builder(subject, subject, private.public_key(), now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(private, hashes.SHA256())
    )
    _write(folder, name, private, signed)


def _make(folder: Path, one: Wanted, now: datetime.datetime) -> None:
    authority = _load(folder, one.authority)
    signing = serialization.load_pem_private_key(key(folder, one.authority).read_bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    private = ec.generate_private_key(ec.SECP256R1())
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] * bool(one.hosts) + [ExtendedKeyUsageOID.CLIENT_AUTH] * one.client
    builder = (
        _builder(_subject(one), authority.subject, private.public_key(), now, _DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    if one.hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(_names(one.hosts)), critical=False)
    _write(folder, one.name, private, builder.sign(signing, hashes.SHA256()))


def _make_service_account_key(folder: Path) -> None:
    """Make the key that signs the tokens of service accounts (RSA: what every verifier of such tokens knows).

    One that is there stays, for the tokens that pods hold, and gets its public half again.
    """
    path = key(folder, "service-account")
    private = serialization.load_pem_private_key(path.read_bytes(), None) if path.is_file() else None
    if not isinstance(private, rsa.RSAPrivateKey):
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        write_private(path, _pem(private))
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_atomic(_public(folder), public)


def _public(folder: Path) -> Path:
    return folder / "service-account.pub"


def _write(folder: Path, name: str, private: ec.EllipticCurvePrivateKey, signed: x509.Certificate) -> None:
    write_private(key(folder, name), _pem(private))
    write_atomic(certificate(folder, name), signed.public_bytes(serialization.Encoding.PEM))


def _pem(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a file that was never readable by anybody else, in one move."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
