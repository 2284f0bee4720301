"""The provider `node` on this machine: from nothing to pods, through a crash, and back to nothing.

It needs a machine without a node: where one runs already, it is left alone and these tests skip.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from ci.cluster import kube
from ci.cluster.access import Access
from ci.cluster.kube import Kube, Rejected
from ci.cluster.node.layout import ETCD_PORT, HERE, KUBELET_PORT
from ci.cluster.node.provider import Node
from ci.local import processes
from ci.workspace import Workspace
from tests.cluster.machine import differences, snapshot

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

NAMESPACE = "test-node"
PODS = 3


@dataclass
class Story:
    """What the tests of this file share: each goes on where the one before it ended."""

    workspace: Workspace
    before: dict[str, list[str]]
    access: Access
    kube: Kube

    def pods(self) -> list[dict[str, Any]]:
        return self.kube.list("v1/Pod", NAMESPACE)

    def containers(self) -> dict[str, str]:
        """The running containers by pod: another one would mean that the pod was started anew."""
        return {
            pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["containerID"]
            for pod in self.pods()
            if pod["status"]["phase"] == "Running"
        }


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    node = Node()
    if reason := node.missing():
        pytest.skip(f"no node can run here: it {reason}")
    if HERE.state.exists():
        pytest.skip("a node runs on this machine already, and these tests would remove it")
    workspace = Workspace(tmp_path_factory.mktemp("checkout"))
    before = snapshot()
    try:
        access = node.up(workspace)
        with kube.connect(access) as connected:
            yield Story(workspace, before, access, connected)
    finally:
        node.down(workspace)


def _status(name: str) -> dict[str, Any]:
    return json.loads((HERE.run / "supervisor-status.json").read_text())["parts"][name]


def _pause() -> str:
    text = (HERE.configuration / "containerd.toml").read_text()
    return next(line.split('"')[1] for line in text.splitlines() if "sandbox_image" in line)


def _deployment() -> dict[str, Any]:
    labels = {"app": "pause"}
    container = {"name": "pause", "image": _pause()}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "pause", "namespace": NAMESPACE},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def test_pods_run_on_it(story: Story) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    story.kube.apply([namespace, _deployment()])
    assert story.kube.wait(lambda: len(story.containers()) == PODS, 60), story.pods()
    (node,) = story.kube.list("v1/Node")
    assert node["status"]["nodeInfo"]["kubeletVersion"].startswith("v1.")
    added = "\n".join(differences(story.before, snapshot()))
    for sign in ("interfaces: + wharf-br0", "iptables: + iptables :KUBE-", "processes: + ", "mounts: + /var/lib"):
        assert sign in added  # or the last test would compare nothing


def _answer_to_nobody(url: str) -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, context=context, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_gets_in_without_a_certificate(story: Story) -> None:
    server = json.loads(_kubeconfig(story))["server"]
    host = server.removeprefix("https://").partition(":")[0]
    assert _answer_to_nobody(f"{server}/api/v1/namespaces") == 401
    assert _answer_to_nobody(f"{server}/readyz") == 401
    assert _answer_to_nobody(f"https://{host}:{KUBELET_PORT}/pods") == 401
    with pytest.raises(OSError, match=r"(?i)certificate"):
        _answer_to_nobody(f"https://127.0.0.1:{ETCD_PORT}/health")
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid == _etcd()]
    assert {address.ip for address in listening} == {"127.0.0.1"}


def _etcd() -> int:
    return int(_status("etcd")["pid"])


def _kubeconfig(story: Story) -> str:
    import yaml

    return json.dumps(yaml.safe_load(story.access.kubeconfig.read_text())["clusters"][0]["cluster"])


def test_what_holds_keys_is_readable_by_root_only(story: Story) -> None:
    keys = [story.access.kubeconfig, *HERE.certificates.glob("*.key"), *HERE.configuration.glob("*.kubeconfig")]
    assert len(keys) > 10
    assert {key.stat().st_mode & 0o077 for key in keys} == {0}


def test_secrets_are_encrypted_in_etcd(story: Story) -> None:
    plain, secret = uuid.uuid4().hex, uuid.uuid4().hex
    where = {"name": "test", "namespace": NAMESPACE}
    story.kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": where, "data": {"text": plain}})
    story.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": where, "stringData": {"text": secret}})
    stored = b"".join(file.read_bytes() for file in (HERE.state / "etcd").rglob("*") if file.is_file())
    assert plain.encode() in stored
    assert secret.encode() not in stored


def test_a_namespace_without_labels_takes_no_pod_that_reaches_the_machine(story: Story) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "escape", "namespace": NAMESPACE},
        "spec": {"hostPID": True, "containers": [{"name": "pause", "image": _pause()}]},
    }
    with pytest.raises(Rejected, match="baseline"):
        story.kube.create(pod)


def test_what_is_killed_comes_back_and_pods_do_not_notice(story: Story) -> None:
    before = story.containers()
    killed = {name: int(_status(name)["pid"]) for name in ("etcd", "kube-apiserver", "containerd", "kubelet")}
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        return all(_status(name)["pid"] not in (None, pid) and _status(name)["ready"] for name, pid in killed.items())

    assert processes.wait_until(back, 60), (HERE.run / "supervisor-status.json").read_text()
    assert story.kube.wait(story.kube.ready, 30)
    assert story.containers() == before


def test_up_again_repairs_after_the_supervisor_was_killed_and_leaves_alone_what_runs(story: Story) -> None:
    containers = story.containers()
    names = ("registry", "containerd", "etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kubelet")
    pids = {name: _status(name)["pid"] for name in names}
    supervisor = json.loads((HERE.run / "supervisor.json").read_text())["pid"]
    os.kill(supervisor, signal.SIGKILL)
    os.kill(int(_status("kube-scheduler")["pid"]), signal.SIGKILL)
    assert Node().up(story.workspace) == story.access
    assert {name: _status(name)["pid"] for name in names} == pids
    assert _status("kube-scheduler")["ready"]
    assert story.containers() == containers


def test_down_leaves_nothing_behind(story: Story) -> None:
    removed = Node().down(story.workspace)
    assert str(HERE.state) in removed
    assert differences(story.before, snapshot()) == []
    assert not (story.workspace.state / "cluster" / "kubeconfig").exists()
    assert Node().down(story.workspace) == []
    assert not Path(HERE.run).exists()
