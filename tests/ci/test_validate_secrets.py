"""Secrets: each family is found, what only looks like one is not. None stands in this file: they are put together."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from ci.shell import git
from ci.validation.secrets import check_files, found_in
from tests.ci.gitops_tree import ROOT

HEX40 = "0123456789abcdef" * 2 + "01234567"
B64 = base64.b64encode(b"x" * 30).decode()
SECRET = f"apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\ndata:\n  password: {B64}\n"

HEAD = SECRET.split("data:\n  password")[0]

FOUND = {
    "aws-id": ("id: " + "AKIA" + "Q" * 16, "an AWS access key id"),
    "aws-temporary": ("ASIA" + "7" * 16, "an AWS access key id"),
    "aws-secret": ("aws_secret_access_key = " + B64, "an AWS secret access key"),
    "aws-secret-yaml": ('AWS_SECRET_ACCESS_KEY: "' + B64 + '"', "an AWS secret access key"),
    "rsa": ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
    "openssh": ("x = '-----BEGIN OPENSSH " + "PRIVATE KEY-----\\n'", "a private key"),
    "pgp": ("-----BEGIN PGP " + "PRIVATE KEY BLOCK-----", "a private key"),
    "pkcs8": ("-----BEGIN " + "PRIVATE KEY-----", "a private key"),
    "github": ("token: gh" + "p_" + "a1" * 18, "a GitHub token"),
    "github-fine": ("github" + "_pat_" + "A1" * 30, "a GitHub token"),
    "wandb": ("export WANDB_API" + f"_KEY={HEX40}", "a W&B key"),
    "wandb-yaml": ("WANDB_API" + f'_KEY: "{HEX40}"', "a W&B key"),
    "wandb-python": ("os.environ['WANDB_API" + f"_KEY'] = '{HEX40}'", "a W&B key"),
    "wandb-setdefault": ('setdefault("WANDB_API' + f'_KEY", "{HEX40}")', "a W&B key"),
    "wandb-container": ("- name: WANDB_API" + f"_KEY\n  value: {HEX40}", "a W&B key"),
    "wandb-new": ("wandb" + "_v1_" + "aB3" * 20, "a W&B key"),
    "slack": ("xox" + "b-123456789012-abcdefghijkl", "a Slack token"),
    "google": ("AI" + "za" + "B" * 35, "a Google API key"),
    "pulumi": ("pul" + f"-{HEX40}", "a Pulumi access token"),
    "url": ("postgresql://mlflow:" + "hunter22@db:5432/x", "a password in a URL"),
    "url-no-user": ("redis://:" + "hunter22@cache:6379", "a password in a URL"),
    "secret": (SECRET, "a Kubernetes Secret with its data"),
    "secret-text": (SECRET.replace("data:", "stringData:"), "a Kubernetes Secret with its data"),
    "secret-flow": (HEAD + f"data: {{password: {B64}}}", "a Kubernetes Secret with its data"),
    "secret-second": ("kind: Service\n---\n" + SECRET, "a Kubernetes Secret with its data"),
    "secret-json": ('{\n  "kind": "Secret",\n  "data": {"a": "' + B64 + '"}\n}', "a Kubernetes Secret with its data"),
}
FINE = {
    "placeholder": "postgresql://mlflow:$PASSWORD@db/x https://user:<password>@host https://u:{password}@host",
    "url-without": "https://host:8080/a@b http://127.0.0.1:5000 git@host:path ssh://git@host/x",
    "documentation": "AKIAIOSFODNN7" + "EXAMPLE",
    "digest": f"commit: {HEX40}\nsha256: {'a' * 64}",
    "wandb-from-secret": "- name: WANDB_API_KEY\n  valueFrom: {secretKeyRef: {name: wandb, key: key}}",
    "wandb-variable": "WANDB_API_KEY=$KEY",
    "public": "-----BEGIN PUBLIC KEY-----",
    "secret-empty": HEAD,
    "secret-no-values": HEAD + "data: {}\n",
    "external-secret": "kind: ExternalSecret\nspec:\n  data:\n    - secretKey: a\n",
    "two-documents": HEAD + "---\nkind: ConfigMap\ndata:\n  a: b\n",
    "allowed": "id: AKIA" + "Q" * 16 + "  # wharf:allow-secret it is made up",
    "secret-allowed": SECRET.replace("kind: Secret", "kind: Secret # wharf:allow-secret a sealed template"),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    text, what = FOUND[name]
    found = found_in(f"# first line\n\n{text}\n".encode(), "a.yaml")
    assert [kind for _, kind in found] == [what]


@pytest.mark.parametrize("name", FINE)
def test_fine(name: str) -> None:
    assert found_in(f"# first line\n\n{FINE[name]}\n".encode(), "a.yaml") == []


def test_the_line_is_named_and_the_secret_is_not_shown(tmp_path: Path) -> None:
    key = "AKIA" + "Q" * 16
    (tmp_path / "a.py").write_text(f"x = 1\ny = '{key}'\n")
    (tmp_path / "b.bin").write_bytes(b"\x00\xff" + key.encode())
    faults = check_files(tmp_path, ["a.py", "b.bin", "gone.py"])
    assert [fault.split(" (")[0] for fault in faults] == [
        "a.py:2: holds an AWS access key id",
        "b.bin:1: holds an AWS access key id",
    ]
    assert key not in str(faults)


def test_a_file_too_large_to_search_is_a_fault(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as stream:
        stream.truncate(6_000_000)
    (fault,) = check_files(tmp_path, ["a.csv"])
    assert fault.startswith("a.csv: is larger than 5 MB and was not searched for secrets")


def test_this_repository_holds_none() -> None:
    assert check_files(ROOT, git(ROOT, "ls-files").splitlines()) == []
