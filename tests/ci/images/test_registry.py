"""The registry client: nothing is sent twice, logins are used, and a fault is one line."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from ci.errors import Mistake, Unavailable
from ci.images.credentials import credentials
from ci.images.registry import MANIFEST, Registry
from tests.ci.images.registry_server import BASIC, RegistryServer


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def log_in(tmp_path: Path, **config: object) -> None:
    (tmp_path / "docker").mkdir(exist_ok=True)
    (tmp_path / "docker" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("login", ["", "basic", "bearer"])
def test_a_blob_is_sent_once_and_shared_between_repositories(
    server: RegistryServer, tmp_path: Path, login: str
) -> None:
    server.login = login
    log_in(tmp_path, auths={server.place: {"auth": BASIC}})
    registry, content = Registry(f"{server.place}/team"), b"layer" * 1000
    assert registry.answers()
    assert registry.put_blob("one", digest(content), io.BytesIO(content), len(content))
    assert not registry.put_blob("one", digest(content), io.BytesIO(content), len(content))
    assert not registry.put_blob("two", digest(content), iter([b"never read"]), len(content), mount="one")
    assert server.received == registry.pushed == len(content)
    assert b"".join(registry.blob("two", digest(content))) == content
    server.mounts = False
    assert registry.put_blob("three", digest(content), iter([content[:99], content[99:]]), len(content), mount="one")
    assert set(server.blobs) == {"team/one", "team/two", "team/three"}


def test_a_registry_on_this_machine_is_asked_without_the_proxy(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert Registry(server.place).answers()


class Behind(HTTPAdapter):
    """Plays a proxy that ends TLS."""

    def send(self, request: requests.PreparedRequest, *args: Any, **named: Any) -> requests.Response:
        asked = str(request.url)
        request.url = asked.replace("https://", "http://", 1)
        response = super().send(request, *args, **named)
        response.url = asked
        return response


@pytest.mark.parametrize("login", ["", "bearer"])
def test_neither_layers_nor_logins_leave_tls(server: RegistryServer, tmp_path: Path, login: str) -> None:
    # A registry behind a proxy that ends TLS and does not tell it so: its uploads and its realm are at http://.
    server.login, server.absolute = login, True
    log_in(tmp_path, auths={server.place: {"auth": BASIC}})
    registry = Registry(server.place)
    registry.insecure = False
    registry._session.mount("https://", Behind())
    with pytest.raises(Unavailable, match=r"asks to go on without TLS at http://127\.0\.0\.1:\d+/"):
        registry.put_blob("one", digest(b"layer"), b"layer", 5)
    assert server.received == 0
    assert BASIC not in server.logins


def test_a_manifest_is_found_by_tag_and_digest_and_checked(server: RegistryServer) -> None:
    registry = Registry(server.place)
    assert registry.digest("one", "latest") is None
    config = b"{}"
    registry.put_blob("one", digest(config), config, len(config))
    raw = json.dumps({"config": {"digest": digest(config)}, "layers": []}).encode()
    assert registry.put_manifest("one", "v1", raw) == digest(raw)
    assert registry.digest("one", "v1") == registry.digest("one", digest(raw)) == digest(raw)
    assert registry.manifest("one", digest(raw)).raw == raw
    with pytest.raises(Mistake, match=r"127\.0\.0\.1:\d+/one: no image 'v2'"):
        registry.manifest("one", "v2")
    server.manifests["one", digest(raw)] = (raw + b" ", MANIFEST)
    with pytest.raises(Unavailable, match="the registry sent other content"):
        registry.manifest("one", digest(raw))


def test_a_manifest_whose_layers_are_not_there_is_refused_in_one_line(server: RegistryServer) -> None:
    raw = json.dumps({"config": {"digest": "sha256:0"}, "layers": []}).encode()
    with pytest.raises(Mistake) as caught:
        Registry(server.place).put_manifest("one", "v1", raw)
    name = f"{server.place}/one"
    assert caught.value.lines == [f"registry {server.place}: PUT {name}: 400 MANIFEST_BLOB_UNKNOWN blob unknown"]


@pytest.mark.parametrize(("status", "kind"), [(403, Mistake), (500, Unavailable), (429, Unavailable)])
def test_what_the_registry_refuses_is_said(server: RegistryServer, status: int, kind: type[Exception]) -> None:
    server.fail = status
    with pytest.raises(kind, match=f"GET {server.place}/one: {status} DENIED no room"):
        Registry(server.place).manifest("one", "v1")


def test_a_repository_that_has_to_be_made_first(server: RegistryServer) -> None:
    server.fail = 404
    with pytest.raises(Mistake, match=f"POST {server.place}/one: 404 DENIED no room") as caught:
        Registry(server.place).put_blob("one", "sha256:0", b"x", 1)
    assert caught.value.tip == "some registries want a repository to be made before the first push"


def test_without_a_login_the_way_to_one_is_said(server: RegistryServer) -> None:
    server.login = "bearer"
    with pytest.raises(Mistake, match="401") as caught:
        Registry(server.place).digest("one", "v1")
    assert caught.value.tip == f"log in with `docker login {server.place}` or `podman login {server.place}`"


def test_a_registry_that_is_not_there() -> None:
    registry = Registry("127.0.0.1:1")
    assert not registry.answers()
    with pytest.raises(Unavailable, match=r"registry 127\.0\.0\.1:1 cannot be reached: Connection refused"):
        registry.digest("one", "v1")


@pytest.mark.parametrize(
    ("place", "insecure"),
    [("127.0.0.1:5050", True), ("localhost:5001", True), ("10.0.0.1:5000", False), ("registry.example/team", False)],
)
def test_http_is_spoken_with_this_machine_only(place: str, insecure: bool) -> None:
    assert Registry(place).insecure is insecure
    assert Registry(place)._url("x", "y").startswith("http://" if insecure else "https://")


def test_logins_of_files_and_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert credentials("registry.example") is None
    log_in(tmp_path, auths={"https://index.docker.io/v1/": {"auth": "aHVi"}, "r.example": {}}, credsStore="safe")
    hub = credentials("docker.io")
    assert hub and hub.basic == "aHVi" and "aHVi" not in repr(hub)
    with pytest.raises(Mistake, match="docker-credential-safe: is not on the PATH"):
        credentials("r.example")
    program = tmp_path / "docker-credential-safe"
    program.write_text('#!/bin/sh\nread name\necho "{\\"Username\\": \\"$name\\", \\"Secret\\": \\"s\\"}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = credentials("r.example")
    assert found and base64.b64decode(found.basic) == b"r.example:s"
    program.write_text("#!/bin/sh\necho 'credentials not found in native keychain' >&2\nexit 1\n")
    assert credentials("r.example") is None
    program.write_text("#!/bin/sh\necho 'the safe is locked' >&2\nexit 1\n")
    with pytest.raises(Mistake, match="docker-credential-safe: the safe is locked"):
        credentials("r.example")
    log_in(tmp_path)
    (tmp_path / "docker" / "config.json").write_text("{")
    with pytest.raises(Mistake, match=r"config\.json: cannot be read"):
        credentials("r.example")
