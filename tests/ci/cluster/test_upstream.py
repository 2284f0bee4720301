from __future__ import annotations

from pathlib import Path

import pytest
import requests

from ci.cluster import upstream
from ci.errors import Refusal, Unavailable
from ci.files import sha256_bytes

MANIFEST = b"kind: ConfigMap\nmetadata: {name: one}\n---\n---\nkind: Secret\nmetadata: {name: two}\n"


class Web:
    """What stands in for the internet: one file, counted."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, 0

    def get(self, url: str, timeout: float) -> requests.Response:
        self.asked += 1
        answer = requests.Response()
        answer.status_code, answer._content = 200, self.content
        return answer


@pytest.fixture(autouse=True)
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pin = upstream.Pin("v1", "https://upstream.example/install.yaml", sha256_bytes(MANIFEST))
    monkeypatch.setattr(upstream, "PINS", {"argocd": pin})
    return tmp_path / "modelwharf" / "manifests" / "argocd-v1.yaml"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    found = Web(MANIFEST)
    monkeypatch.setattr(requests, "get", found.get)
    return found


def test_a_manifest_is_fetched_once(web: Web) -> None:
    first = upstream.pinned("argocd")
    assert [one["metadata"]["name"] for one in first] == ["one", "two"]
    assert upstream.pinned("argocd") == first
    assert web.asked == 1


def test_another_content_than_pinned_is_neither_used_nor_kept(web: Web, pinned: Path) -> None:
    web.content += b"---\nkind: ClusterRoleBinding\n"
    with pytest.raises(Refusal) as refused:
        upstream.pinned("argocd")
    assert sha256_bytes(web.content) in refused.value.lines[0] and sha256_bytes(MANIFEST) in refused.value.lines[0]
    assert not pinned.exists()


def test_a_file_in_the_cache_that_was_changed_is_fetched_again(web: Web, pinned: Path) -> None:
    upstream.pinned("argocd")
    pinned.write_bytes(b"kind: ClusterRoleBinding\n")
    assert len(upstream.pinned("argocd")) == 2
    assert (web.asked, pinned.read_bytes()) == (2, MANIFEST)


def test_without_a_network_the_user_is_told_where_to_put_the_file(
    monkeypatch: pytest.MonkeyPatch, pinned: Path
) -> None:
    def refuse(*_: object, **__: object) -> requests.Response:
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(Unavailable) as fault:
        upstream.pinned("argocd")
    assert "argocd v1 cannot be fetched: no route to host" in fault.value.lines[0]
    assert str(pinned) in fault.value.tip
    pinned.parent.mkdir(parents=True)
    pinned.write_bytes(MANIFEST)
    assert len(upstream.pinned("argocd")) == 2


def test_a_server_that_says_no_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = requests.Response()
    answer.status_code, answer.reason = 404, "Not Found"
    monkeypatch.setattr(requests, "get", lambda *_, **__: answer)
    with pytest.raises(Unavailable, match="404"):
        upstream.pinned("argocd")


def test_what_was_parsed_is_read_again_even_after_a_broken_write(web: Web) -> None:
    first = upstream.parse(MANIFEST)
    kept = upstream.folder() / f"{sha256_bytes(MANIFEST)}.json"
    kept.write_text("[{")
    assert upstream.parse(MANIFEST) == first


def test_the_pins_are_whole() -> None:
    from importlib import reload

    for pin in reload(upstream).PINS.values():
        assert len(pin.sha256) == 64 and set(pin.sha256) <= set("0123456789abcdef")
        assert f"/{pin.version}/" in pin.url
