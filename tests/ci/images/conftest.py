"""A cache and logins of the test's own, and a registry in memory."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from ci.cluster.access import Access
from tests.ci.images.registry_server import RegistryServer, registry_server


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "WHARF_BUILDER", "WHARF_BASE_IMAGE", "WHARF_TOOLS_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("WHARF_PLATFORM", raising=False)


@pytest.fixture
def server() -> Generator[RegistryServer]:
    with registry_server() as state:
        yield state


@pytest.fixture
def access(server: RegistryServer, tmp_path: Path) -> Access:
    return Access("node", tmp_path / "kubeconfig", "here", "wharf.local", server.place, None)
