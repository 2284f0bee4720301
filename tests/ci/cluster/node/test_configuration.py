"""What the node's parts are told: no anonymous access, nothing in the open, nothing outside of our folders."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci.cluster.node import certificates, commands, configuration
from ci.cluster.node.addresses import Addresses
from ci.cluster.node.layout import Layout
from ci.cluster.node.parts import Part

tomllib = pytest.importorskip("tomllib")

ADDRESSES = Addresses("10.96.0.0/16", "10.97.0.0/16", 5051, 1400)
NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "pause")
PROGRAMS = {name: Path("/programs") / name for name in NAMES}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "state", tmp_path / "run")
    certificates.ensure(found.certificates, ADDRESSES)
    configuration.write(found, ADDRESSES, sandbox_image="wharf.local/pause@sha256:1", snapshotter="overlayfs")
    return found


def _parts(layout: Layout) -> dict[str, Part]:
    return {part.name: part for part in commands.wanted(layout, ADDRESSES, PROGRAMS)}


def _options(part: Part) -> dict[str, str]:
    words = [word.removeprefix("--") for word in part.command if word.startswith("--")]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _document(layout: Layout, name: str) -> Any:
    return yaml.safe_load((layout.configuration / name).read_text())


def test_the_api_server_knows_everybody_by_name(layout: Layout) -> None:
    options = _options(_parts(layout)["kube-apiserver"])
    assert options["anonymous-auth"] == "false"
    assert options["authorization-mode"] == "Node,RBAC"
    assert "NodeRestriction" in options["enable-admission-plugins"].split(",")
    assert "insecure-port" not in options
    assert options["bind-address"] == "10.96.0.1"  # the bridge: no address that the world can reach


def test_etcd_listens_on_loopback_only_and_asks_for_certificates(layout: Layout) -> None:
    part = _parts(layout)["etcd"]
    options = _options(part)
    for name in ("listen-client-urls", "listen-peer-urls", "advertise-client-urls"):
        assert options[name].startswith("https://127.0.0.1:")
    assert {"client-cert-auth", "peer-client-cert-auth"} <= options.keys()
    assert options["trusted-ca-file"].endswith("etcd-ca.crt")


@pytest.mark.parametrize("name", ["kube-controller-manager", "kube-scheduler"])
def test_the_controllers_listen_on_loopback_only(layout: Layout, name: str) -> None:
    assert _options(_parts(layout)[name])["bind-address"] == "127.0.0.1"


def test_the_kubelet_answers_nobody_unknown(layout: Layout) -> None:
    found = _document(layout, "kubelet.yaml")
    assert found["authentication"]["anonymous"] == {"enabled": False}
    assert found["authentication"]["webhook"] == {"enabled": True}
    assert (found["authorization"]["mode"], found["readOnlyPort"], found["address"]) == ("Webhook", 0, "10.96.0.1")
    assert found["clusterDNS"] == ["10.97.0.10"]


def test_secrets_are_encrypted_first_and_the_key_is_kept(layout: Layout) -> None:
    def providers() -> Any:
        return _document(layout, "encryption.yaml")["resources"][0]["providers"]

    before = providers()
    assert [next(iter(provider)) for provider in before] == ["secretbox", "identity"]
    configuration.write(layout, ADDRESSES, sandbox_image="other", snapshotter="overlayfs")
    assert providers() == before


def test_a_namespace_without_labels_is_held_to_baseline(layout: Layout) -> None:
    (plugin,) = _document(layout, "admission.yaml")["plugins"]
    assert plugin["name"] == "PodSecurity"
    assert plugin["configuration"]["defaults"]["enforce"] == "baseline"


def test_containerd_keeps_to_our_folders_and_pulls_our_images_from_our_registry(layout: Layout) -> None:
    found = tomllib.loads((layout.configuration / "containerd.toml").read_text())
    cri = found["plugins"]["io.containerd.grpc.v1.cri"]
    runc = cri["containerd"]["runtimes"]["runc"]["options"]
    opt = found["plugins"]["io.containerd.internal.v1.opt"]
    for path in (found["root"], found["state"], found["grpc"]["address"], runc["Root"], opt["path"]):
        assert Path(path).is_relative_to(layout.state) or Path(path).is_relative_to(layout.run)
    assert cri["netns_mounts_under_state_dir"] is True
    assert runc["SystemdCgroup"] is False
    hosts = tomllib.loads(Path(cri["registry"]["config_path"], "wharf.local", "hosts.toml").read_text())
    assert hosts["server"] == "http://127.0.0.1:5051"
    assert list(hosts["host"]) == ["http://127.0.0.1:5051"]


def test_pods_get_addresses_of_the_bridge(layout: Layout) -> None:
    found = json.loads((layout.configuration / "cni/10-modelwharf.conflist").read_text())
    bridge = found["plugins"][0]
    assert (bridge["type"], bridge["bridge"], bridge["mtu"], bridge["hairpinMode"]) == (
        "bridge",
        "wharf-br0",
        1400,
        True,
    )
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.96.0.0/16", "gateway": "10.96.0.1"}]]


def test_kube_proxy_leaves_the_kernels_settings_alone(layout: Layout) -> None:
    found = _document(layout, "kube-proxy.yaml")
    assert found["iptables"]["localhostNodePorts"] is False
    assert found["conntrack"] == {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
    }


def test_the_registry_is_on_loopback(layout: Layout) -> None:
    assert _document(layout, "registry.yaml")["http"]["addr"] == "127.0.0.1:5051"


def test_no_file_is_readable_by_others(layout: Layout) -> None:
    files = [path for path in layout.configuration.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_every_file_of_a_part_is_there_and_every_part_waits_for_one_that_is(layout: Layout) -> None:
    parts = _parts(layout)
    for part in parts.values():
        assert [file for file in part.files if not Path(file).is_file()] == []
        assert set(part.after) <= parts.keys()
        assert part.probe is not None


def test_a_changed_file_or_command_changes_the_digest(layout: Layout) -> None:
    part = _parts(layout)["registry"]
    before = part.digest()
    assert _parts(layout)["registry"].digest() == before
    Path(part.files[0]).write_text("other")
    assert part.digest() != before


def test_the_kubeconfig_for_people_can_be_copied(layout: Layout) -> None:
    found = _document(layout, "admin.kubeconfig")
    assert found["clusters"][0]["cluster"]["server"] == "https://10.96.0.1:6443"
    assert "client-key-data" in found["users"][0]["user"]
    assert str(layout.state) not in layout.admin.read_text()


def test_a_proxy_of_the_environment_is_for_containerd_and_not_for_our_registry(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    parts = _parts(layout)
    assert parts["containerd"].env["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert parts["containerd"].env["NO_PROXY"] == "127.0.0.1,10.96.0.1"
    assert "HTTPS_PROXY" not in parts["kube-apiserver"].env
