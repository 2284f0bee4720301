"""The provider `existing`, without a cluster: what it reads from the kubeconfig and the settings."""

from __future__ import annotations

import io
from pathlib import Path

import psutil
import pytest
import yaml

from ci.cluster import access, existing, platform, provider
from ci.cluster.existing import Existing, is_local
from ci.errors import Mistake, Refusal
from ci.workspace import Workspace

KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "here",
    "clusters": [
        {"name": "here", "cluster": {"server": "https://127.0.0.1:6443"}},
        {"name": "away", "cluster": {"server": "https://api.example.com"}},
    ],
    "users": [{"name": "me", "user": {}}],
    "contexts": [
        {"name": "here", "context": {"cluster": "here", "user": "me"}},
        {"name": "away", "context": {"cluster": "away", "user": "me"}},
        {"name": "broken", "context": {"cluster": "gone", "user": "me"}},
    ],
}


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(KUBECONFIG))
    monkeypatch.setenv("KUBECONFIG", f"{path}:/nowhere")
    return path


def test_it_can_be_used_with_a_context_of_the_kubeconfig(kubeconfig: Path) -> None:
    assert Existing().missing() is None
    assert Existing("away").missing() is None
    assert Existing("awya").missing() == f"{kubeconfig}: no context 'awya' (did you mean 'away'?)"
    assert Existing("broken").missing() == f"{kubeconfig}: context 'broken': there is no cluster 'gone'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("contexts: [", "is not a kubeconfig"),
        ("contexts: [{name: a}]", "is not a kubeconfig"),
        ("{}", "no current context"),
        ("- 1", "is not a kubeconfig"),
    ],
)
def test_a_broken_kubeconfig_is_said_in_one_line(kubeconfig: Path, text: str, said: str) -> None:
    kubeconfig.write_text(text)
    fault = Existing().missing()
    assert fault is not None and said in fault and "\n" not in fault


def test_a_missing_kubeconfig_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert Existing().missing() == f"{tmp_path / 'none'}: No such file or directory"


def test_local_is_what_runs_on_this_machine() -> None:
    mine = next(a.address for each in psutil.net_if_addrs().values() for a in each if a.family.name == "AF_INET")
    assert is_local("https://127.0.0.1:6443")
    assert is_local("https://[::1]:6443")
    assert is_local("https://localhost:6443")
    assert is_local("https://kubernetes.docker.internal:6443")
    assert is_local(f"https://{mine}:6443")
    assert not is_local("https://203.0.113.9:6443")
    assert not is_local("https://0123.eks.example.com")


@pytest.mark.usefixtures("kubeconfig")
def test_a_cluster_elsewhere_is_not_touched_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(Mistake, match="not on this machine, and nobody can be asked") as error:
        Existing("away").up(None)  # type: ignore[arg-type]
    assert error.value.tip == "say so by --yes when you mean it"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize("answer", ["n\n", "\n", "", "what?\n"])
def test_anything_but_yes_leaves_it_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal(answer))
    with pytest.raises(Refusal, match="context 'away' was left alone"):
        Existing("away").up(None)  # type: ignore[arg-type]
    assert "into context 'away' (https://api.example.com)" in capsys.readouterr().err


class _Configuration:
    """A Kubernetes API that has one ConfigMap."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def get(self, kind: str, name: str, namespace: str) -> dict[str, object] | None:
        assert (kind, name, namespace) == ("v1/ConfigMap", "local-registry-hosting", "kube-public")
        return None if self.text is None else {"data": {"localRegistryHosting.v1": self.text}}


@pytest.mark.parametrize(("text", "host"), [("host: localhost:5050\n", "localhost:5050"), (None, None), ("- 1", None)])
def test_the_declared_local_registry_is_found(text: str | None, host: str | None) -> None:
    assert existing._registry_hosting(_Configuration(text)) == host


@pytest.mark.usefixtures("kubeconfig")
def test_what_was_brought_up_is_repaired_in_the_cluster_of_its_own_kubeconfig(
    tmp_path: Path, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    access.save(workspace, access.Access("existing", kubeconfig, "away", "r", "r", None))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "another"))
    assert provider.choose(workspace) == Existing("away", False, kubeconfig)


@pytest.mark.usefixtures("kubeconfig")
def test_removing_from_a_cluster_elsewhere_asks_and_says_what_goes(
    tmp_path: Path, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path)
    assert Existing("away").down(workspace) == [], "nothing was brought up from here"
    access.save(workspace, access.Access("existing", kubeconfig, "away", "r", "r", None))
    monkeypatch.setattr("sys.stdin", _Terminal("n\n"))
    with pytest.raises(Refusal, match="context 'away' was left alone"):
        Existing("away").down(workspace)
    assert "MLflow with its runs and versions from context 'away'" in capsys.readouterr().err
    monkeypatch.setattr(platform, "remove", lambda _workspace, _access: ["the platform"])
    assert Existing("away", agreed=True).down(workspace) == ["the platform"]
