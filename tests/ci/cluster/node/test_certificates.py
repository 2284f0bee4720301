"""The node's certificates: who signs whom, who may read the keys, and when they are made anew."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ci.cluster.node import certificates
from ci.cluster.node.addresses import Addresses

ADDRESSES = Addresses("10.96.0.0/16", "10.97.0.0/16", 5050)
NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificates.ensure(tmp_path / "certificates", ADDRESSES, NOW)
    return tmp_path / "certificates"


def _read(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificates.certificate(folder, name).read_bytes())


def test_each_is_signed_by_its_own_authority_and_no_other(folder: Path) -> None:
    authorities = {name: _read(folder, name) for name in ("cluster-ca", "etcd-ca", "front-proxy-ca")}
    for wanted in certificates.wanted(ADDRESSES):
        found = _read(folder, wanted.name)
        found.verify_directly_issued_by(authorities[wanted.authority])
        for name in authorities.keys() - {wanted.authority}:
            with pytest.raises(ValueError, match="Issuer"):
                found.verify_directly_issued_by(authorities[name])


def test_only_the_api_server_has_a_key_to_etcd() -> None:
    to_etcd = {one.name for one in certificates.wanted(ADDRESSES) if one.authority == certificates.ETCD and one.client}
    assert to_etcd == {"etcd", "etcd-client"}


@pytest.mark.parametrize(
    ("name", "user", "groups"),
    [
        ("kubelet", "system:node:wharf", ["system:nodes"]),
        ("scheduler", "system:kube-scheduler", []),
        ("controller-manager", "system:kube-controller-manager", []),
        ("kube-proxy", "system:kube-proxy", []),
        ("admin", "modelwharf:admin", ["system:masters"]),
        ("probe", "modelwharf:probe", []),
    ],
)
def test_each_part_is_the_user_that_kubernetes_expects(folder: Path, name: str, user: str, groups: list[str]) -> None:
    subject = _read(folder, name).subject
    assert [one.value for one in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [user]
    assert [one.value for one in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == groups


def test_only_the_administrator_is_master() -> None:
    masters = [one.name for one in certificates.wanted(ADDRESSES) if "system:masters" in one.groups]
    assert masters == ["admin"]


def test_the_api_server_is_known_by_all_its_addresses_and_is_no_client(folder: Path) -> None:
    found = _read(folder, "apiserver")
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {
        "10.96.0.1",
        "10.97.0.1",
        "127.0.0.1",
    }
    assert "kubernetes.default.svc.cluster.local" in names.get_values_for_type(x509.DNSName)
    uses = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_keys_are_readable_by_root_only(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    keys = list(folder.glob("*.key"))
    assert len(keys) == len(certificates.wanted(ADDRESSES)) + 4
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_a_second_time_makes_nothing(folder: Path) -> None:
    assert certificates.ensure(folder, ADDRESSES, NOW) == []


def test_what_is_near_its_end_is_made_anew_and_the_authorities_stay(folder: Path) -> None:
    before = _read(folder, "cluster-ca").serial_number
    later = NOW + datetime.timedelta(days=365 - certificates.RENEW_DAYS + 1)
    assert set(certificates.ensure(folder, ADDRESSES, later)) == {o.name for o in certificates.wanted(ADDRESSES)}
    assert _read(folder, "cluster-ca").serial_number == before
    assert _read(folder, "kubelet").not_valid_after_utc > later + datetime.timedelta(days=360)


def test_a_new_authority_signs_its_own_anew(folder: Path) -> None:
    certificates.key(folder, "etcd-ca").unlink()
    assert certificates.ensure(folder, ADDRESSES, NOW) == ["etcd-ca", "etcd", "etcd-client"]


def test_other_addresses_make_the_servers_certificates_anew(folder: Path) -> None:
    other = Addresses("10.196.0.0/16", "10.197.0.0/16", 5050)
    assert certificates.ensure(folder, other, NOW) == ["apiserver", "kubelet-serving"]


def test_a_damaged_key_is_made_anew(folder: Path) -> None:
    certificates.key(folder, "scheduler").write_text("damaged")
    assert certificates.ensure(folder, ADDRESSES, NOW) == ["scheduler"]


@pytest.mark.parametrize("name", ["scheduler", "cluster-ca"])
def test_a_key_without_its_certificate_is_made_anew(folder: Path, name: str) -> None:
    # As an interruption between the two files leaves it: the key of the next certificate beside the one before.
    other = folder.parent / "other"
    certificates.ensure(other, ADDRESSES, NOW)
    certificates.key(other, name).replace(certificates.key(folder, name))
    assert name in certificates.ensure(folder, ADDRESSES, NOW)
    for each in certificates.wanted(ADDRESSES):
        private = serialization.load_pem_private_key(certificates.key(folder, each.name).read_bytes(), None)
        assert private.public_key() == _read(folder, each.name).public_key()
        _read(folder, each.name).verify_directly_issued_by(_read(folder, each.authority))
    assert certificates.ensure(folder, ADDRESSES, NOW) == []


def test_the_public_half_of_the_key_of_service_accounts_comes_back(folder: Path) -> None:
    public = folder / "service-account.pub"
    before = public.read_text()
    public.unlink()
    assert certificates.ensure(folder, ADDRESSES, NOW) == ["service-account"]
    assert public.read_text() == before  # pods hold tokens of it


def test_the_key_of_service_accounts_is_kept(folder: Path) -> None:
    public = serialization.load_pem_public_key((folder / "service-account.pub").read_bytes())
    certificates.ensure(folder, ADDRESSES, NOW + datetime.timedelta(days=340))
    assert serialization.load_pem_public_key((folder / "service-account.pub").read_bytes()) == public


def test_a_private_file_replaces_another_one_that_everybody_may_read(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("old")
    path.chmod(0o644)
    certificates.write_private(path, b"new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
