"""A client of container registries: the part of the OCI distribution API that asking and pushing needs.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md. http is spoken with loopback addresses only.
Credentials are those of `docker login` and `podman login`, helpers included.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NoReturn, cast
from urllib.parse import urljoin, urlsplit

import requests

from ci.errors import Mistake, Unavailable
from ci.images.credentials import credentials
from ci.workspace import shown_uri

Json = dict[str, Any]
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_LISTS = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
_ACCEPT = ", ".join((MANIFEST, *_LISTS, "application/vnd.docker.distribution.manifest.v2+json"))
_TIMEOUT_S = 60
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Found:
    """A manifest in a registry."""

    digest: str  # "sha256:…"
    content: Json
    raw: bytes


class Registry:
    """`place` is `host[:port][/path]`; repositories are below the path. `pushed` counts the bytes that were sent."""

    def __init__(self, place: str) -> None:
        self.host, _, path = place.partition("/")
        self.place, self.pushed = place, 0
        self._prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        self.insecure = _loopback(self.host)
        self._session = requests.Session()
        self._session.trust_env = not self.insecure  # a company's proxy does not know the way to this machine
        self._tokens: dict[str, str] = {}

    def name(self, repository: str) -> str:
        """Return the whole name of `repository`, without a tag or a digest."""
        return f"{self.place.rstrip('/')}/{repository}"

    def answers(self) -> bool:
        """Tell whether a registry answers there, whatever it says."""
        try:
            return self._session.get(self._url("", api=""), timeout=5).status_code in {200, 401}
        except requests.RequestException:
            return False

    def digest(self, repository: str, reference: str) -> str | None:
        """Return the digest of the manifest that a tag or digest names, None when there is none."""
        answer = self._ask("HEAD", repository, f"manifests/{reference}", headers={"Accept": _ACCEPT}, fine=(200, 404))
        if answer.status_code == 404:
            return None
        return answer.headers.get("Docker-Content-Digest") or self.manifest(repository, reference).digest

    def manifest(self, repository: str, reference: str) -> Found:
        """Return a manifest; raises Mistake when there is none, Unavailable when its content is not what it says."""
        answer = self._ask("GET", repository, f"manifests/{reference}", headers={"Accept": _ACCEPT}, fine=(200, 404))
        if answer.status_code == 404:
            raise Mistake(f"{self.name(repository)}: no image '{reference}'", tip="is its name and digest right?")
        digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        if reference.startswith("sha256:") and digest != reference:
            raise Unavailable(f"{self.name(repository)}@{reference}: the registry sent other content ({digest})")
        return Found(digest, json.loads(answer.content), answer.content)

    def for_platform(self, repository: str, reference: str, architecture: str) -> Found:
        """Return the manifest of one Linux image, chosen from the list when `reference` names one."""
        found = self.manifest(repository, reference)
        if found.content.get("mediaType") not in _LISTS and "manifests" not in found.content:
            return found
        for entry in found.content["manifests"]:
            platform = entry.get("platform", {})
            if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
                return self.manifest(repository, entry["digest"])
        raise Mistake(f"{self.name(repository)}@{found.digest}: has no image for linux/{architecture}")

    def blob(self, repository: str, digest: str) -> Iterator[bytes]:
        """Give the content of a blob in pieces."""
        with self._ask("GET", repository, f"blobs/{digest}", stream=True) as answer:
            yield from answer.iter_content(_CHUNK)

    def json_blob(self, repository: str, digest: str) -> Json:
        return json.loads(b"".join(self.blob(repository, digest)))

    def has_blob(self, repository: str, digest: str) -> bool:
        return self._ask("HEAD", repository, f"blobs/{digest}", fine=(200, 404)).status_code == 200

    def put_blob(
        self, repository: str, digest: str, content: bytes | IO[bytes] | Iterator[bytes], size: int, *, mount: str = ""
    ) -> bool:
        """Bring a blob into `repository` and tell whether bytes were sent.

        Nothing is sent when it is there already, or when the repository `mount` of the same registry has it.
        """
        if self.has_blob(repository, digest):
            return False
        wanted = {"mount": digest, "from": self._prefix + mount} if mount else {}
        begun = self._ask("POST", repository, "blobs/uploads/", params=wanted, fine=(201, 202))
        if begun.status_code == 201:
            return False
        headers = {"Content-Type": "application/octet-stream"}
        where = urljoin(begun.url, begun.headers["Location"])
        if size:
            if isinstance(content, bytes):
                headers["Content-Length"] = str(size)
            sent = self._ask("PATCH", repository, where, data=content, headers=headers, fine=(202,))
            where = urljoin(sent.url, sent.headers["Location"])
        self._ask("PUT", repository, where, params={"digest": digest}, fine=(201,))
        self.pushed += size
        return True

    def put_manifest(self, repository: str, reference: str, content: bytes, media_type: str = MANIFEST) -> str:
        """Store a manifest under a tag or its digest and return its digest."""
        headers = {"Content-Type": media_type}
        self._ask("PUT", repository, f"manifests/{reference}", data=content, headers=headers, fine=(201,))
        self.pushed += len(content)
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def _url(self, repository: str, what: str = "", *, api: str = "v2") -> str:
        scheme = "http" if self.insecure else "https"
        host = "registry-1.docker.io" if self.host == "docker.io" else self.host
        return f"{scheme}://{host}/{api or 'v2'}/" + (f"{self._prefix}{repository}/{what}" if repository else "")

    def _ask(
        self, method: str, repository: str, what: str, *, fine: tuple[int, ...] = (200,), **more: Any
    ) -> requests.Response:
        """Send one request, with a token when the registry wants one; raises Mistake or Unavailable in one line."""
        url = what if what.startswith("http") else self._url(repository, what)
        self._require_tls(url)
        is_here = urlsplit(url).netloc == urlsplit(self._url("")).netloc
        headers: dict[str, str] = {**more.pop("headers", {})}

        def send() -> requests.Response:
            if repository in self._tokens and is_here:  # where it sends us to has its own way to know us
                headers["Authorization"] = self._tokens[repository]
            return self._session.request(method, url, headers=headers, timeout=_TIMEOUT_S, **more)

        try:
            answer = send()
            if answer.status_code == 401:
                self._log_in(repository, answer.headers.get("WWW-Authenticate", ""))
                answer = send()
        except requests.RequestException as error:
            raise Unavailable(
                f"registry {self.place} cannot be reached: {_reason(error)}",
                tip="is it running, and is the name right?",
            ) from None
        if answer.status_code in fine:
            return answer
        self._refuse(answer, method, repository)

    def _require_tls(self, url: str) -> None:
        """Raise Unavailable when a registry that is spoken to by TLS sends us where there is none."""
        if urlsplit(url).scheme == "http" and not self.insecure:
            raise Unavailable(
                f"registry {self.place}: asks to go on without TLS at {shown_uri(url)}: nothing was sent there",
                tip="a proxy in front of a registry must tell it of https (X-Forwarded-Proto)",
            )

    def _refuse(self, answer: requests.Response, method: str, repository: str) -> NoReturn:
        said = _said(answer)
        where = f"registry {self.place}: {method} {self.name(repository)}: {answer.status_code} {said}"
        if answer.status_code in {401, 403}:
            raise Mistake(where, tip=f"log in with `docker login {self.host}` or `podman login {self.host}`")
        if answer.status_code in {429, *range(500, 600)}:
            raise Unavailable(where, tip="run the command again later")
        raise Mistake(where, tip="some registries want a repository to be made before the first push")

    def _log_in(self, repository: str, challenge: str) -> None:
        """Answer a challenge (https://distribution.github.io/distribution/spec/auth/token/)."""
        kind, _, rest = challenge.partition(" ")
        known = credentials(self.host)
        if kind.lower() == "basic" and known:
            self._tokens[repository] = f"Basic {known.basic}"
        elif kind.lower() == "bearer":
            wanted = dict(cast("list[tuple[str, str]]", re.findall(r'(\w+)="([^"]*)"', rest)))
            self._require_tls(wanted.get("realm", ""))
            query = {key: value for key, value in wanted.items() if key in {"service", "scope"}}
            basic = {"Authorization": f"Basic {known.basic}"} if known else {}
            answer = self._session.get(wanted.get("realm", ""), params=query, headers=basic, timeout=_TIMEOUT_S)
            if answer.status_code == 200:
                raw = answer.json()
                self._tokens[repository] = f"Bearer {raw.get('token') or raw['access_token']}"


def _loopback(host: str) -> bool:
    name = re.sub(r":\d+$", "", host).strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _reason(error: Exception) -> str:
    text = shown_uri(str(error))
    found = re.search(r"(Connection refused|Name or service not known|timed out|certificate verify failed)", text)
    return found.group(1) if found else text.splitlines()[0][:200]


def _said(answer: requests.Response) -> str:
    try:
        first = answer.json()["errors"][0]
        return f"{first.get('code', '')} {first.get('message', '')}".strip()
    except (ValueError, KeyError, IndexError, TypeError):
        return answer.reason or ""
