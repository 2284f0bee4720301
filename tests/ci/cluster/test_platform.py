"""What the platform is made from, and how it is applied: against a double of the API server.

The real one, and the programs themselves, are in tests/cluster.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ci.cluster import platform, readiness, upstream
from ci.cluster.access import Access
from ci.errors import Mistake, Unavailable
from ci.rendering import argocd as bootstrap
from ci.shell import git
from ci.workspace import Workspace
from infra.platform import rights
from tests.ci.cluster.kube_double import KubeDouble
from tests.ci.gitops_tree import commit, make_tree
from tests.infra.platform import upstream as installs
from tests.infra.platform.restricted import named, pods

Json = dict[str, Any]
REFERENCE = "wharf.local/{}@sha256:" + "a" * 64
IMAGES = platform.Images(*(REFERENCE.format(name) for name in ("mlflow", "argocd", "redis", "rollouts", "coredns")))
FACTS = platform.Facts("10.97.0.10", "10.97.4.5", ("10.96.0.1",))
MORE_KINDS = {
    "/api/v1": [
        ("ServiceAccount", "serviceaccounts", True),
        ("Secret", "secrets", True),
        ("Node", "nodes", False),
        ("PersistentVolume", "persistentvolumes", False),
        ("PersistentVolumeClaim", "persistentvolumeclaims", True),
        ("ResourceQuota", "resourcequotas", True),
        ("LimitRange", "limitranges", True),
    ],
    "/apis/apps/v1": [("StatefulSet", "statefulsets", True)],
    "/apis/networking.k8s.io/v1": [("NetworkPolicy", "networkpolicies", True)],
    "/apis/rbac.authorization.k8s.io/v1": [
        ("Role", "roles", True),
        ("RoleBinding", "rolebindings", True),
        ("ClusterRole", "clusterroles", False),
        ("ClusterRoleBinding", "clusterrolebindings", False),
    ],
}


class Cluster(KubeDouble):
    """The double, with controllers: Services get addresses, and pods are Ready unless `sick` names their workload."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sick: set[str] = set()
        for api, kinds in MORE_KINDS.items():
            self.kinds[api] = [*self.kinds.get(api, []), *kinds]
        self.kinds["/apis/argoproj.io/v1alpha1"] = [
            *self.kinds["/apis/argoproj.io/v1alpha1"],
            ("Rollout", "rollouts", True),
        ]
        meta = {"namespace": "default", "name": "kubernetes"}
        self.add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}})
        self.add({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"clusterIP": "10.97.0.1"}})
        addresses = [{"type": "Hostname", "address": "wharf"}, {"type": "InternalIP", "address": "10.96.0.1"}]
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "wharf"}, "status": {"addresses": addresses}}
        self.add(node)

    def _patch(self, call: BaseHTTPRequestHandler, kind: str, namespace: str, name: str, body: Json) -> None:
        if kind.endswith("/services"):
            body["spec"].setdefault("clusterIP", "10.97.7.7")
        if kind.endswith(("/deployments", "/statefulsets")):
            ready = 0 if name in self.sick else 1
            body["status"] = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": ready, "readyReplicas": ready}
        super()._patch(call, kind, namespace, name, body)

    def sent(self, plural: str) -> int:
        return sum(1 for method, path in self.asked if method == "PATCH" and f"/{plural}/" in path)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = make_tree(tmp_path / "repository", "one", "two")
    (root / bootstrap.SETTINGS).write_text("repository: file:///srv/modelwharf/origin.git\n")
    for path, text in bootstrap.render(root).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    commit(root, "Bootstrap")
    return Workspace(root)


@pytest.fixture
def cluster(tmp_path: Path) -> Generator[Cluster]:
    with Cluster(tmp_path) as found:
        yield found


@pytest.fixture
def access(cluster: Cluster) -> Access:
    return Access("kind", cluster.kubeconfig, "double", "wharf.local", "127.0.0.1:5050", "/srv/modelwharf/origin.git")


@pytest.fixture(autouse=True)
def manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"argocd": installs.argocd(full=True), "rollouts": installs.rollouts()}
    monkeypatch.setattr(upstream, "pinned", lambda program: found[program])


def on(provider: str, origin: str | None = "/data/origin.git") -> Access:
    return Access(provider, Path("/kubeconfig"), "context", "wharf.local", "127.0.0.1:5050", origin)


def parts(workspace: Workspace, access: Access, images: platform.Images = IMAGES) -> dict[str, list[Json]]:
    install = {"argocd": installs.argocd(full=access.provider != "node"), "rollouts": installs.rollouts()}
    return {part.name: part.objects for part in platform.parts(workspace, access, images, install, FACTS)}


def test_the_node_gets_all_parts_with_our_images(workspace: Workspace) -> None:
    found = parts(workspace, on("node"))
    assert list(found) == ["CoreDNS", "tenants", "Argo CD", "Argo Rollouts", "MLflow", "registry credentials"]
    images = {
        container["image"]
        for objects in found.values()
        for pod in pods(objects).values()
        for container in [*pod.get("initContainers", []), *pod["containers"]]
    }
    assert images == {IMAGES.mlflow, IMAGES.argocd, IMAGES.redis, IMAGES.rollouts, IMAGES.coredns}


def test_other_clusters_have_dns_and_pull_upstreams_images(workspace: Workspace) -> None:
    found = parts(workspace, on("existing"), platform.Images(IMAGES.mlflow))
    assert "CoreDNS" not in found
    assert pods(found["Argo CD"])["argocd-server"]["containers"][0]["image"].startswith("quay.io/argoproj/argocd:v")
    assert pods(found["Argo Rollouts"])["argo-rollouts"]["containers"][0]["image"] == (
        f"quay.io/argoproj/argo-rollouts:{upstream.PINS['rollouts'].version}"
    )


def test_the_node_without_an_image_says_which(workspace: Workspace) -> None:
    with pytest.raises(Mistake, match="needs an image of coredns"):
        parts(workspace, on("node"), platform.Images(IMAGES.mlflow))


def test_mlflow_on_the_node_is_on_its_disk_and_reached_from_it(workspace: Workspace) -> None:
    objects = parts(workspace, on("node"))["MLflow"]
    path = named(objects, "PersistentVolume", "modelwharf-mlflow")["spec"]["local"]["path"]
    assert path == "/var/lib/modelwharf/volumes/mlflow"
    peers = named(objects, "NetworkPolicy", "mlflow")["spec"]["ingress"][0]["from"]
    assert {"ipBlock": {"cidr": "10.96.0.1/32"}} in peers
    command = pods(objects)["mlflow"]["containers"][0]["command"]
    assert "10.97.4.5:5000" in command[-1]


def test_mlflow_elsewhere_asks_for_a_volume(workspace: Workspace) -> None:
    objects = parts(workspace, on("kind"))["MLflow"]
    assert not [one for one in objects if one["kind"] == "PersistentVolume"]
    assert "storageClassName" not in named(objects, "PersistentVolumeClaim", "mlflow")["spec"]


def test_the_origin_is_mounted_where_its_address_says(workspace: Workspace) -> None:
    objects = parts(workspace, on("node"))["Argo CD"]
    mounts = pods(objects)["argocd-repo-server"]["containers"][0]["volumeMounts"]
    assert {"name": "origin", "mountPath": "/srv/modelwharf/origin.git", "readOnly": True} in mounts
    assert [one["spec"]["hostPath"]["path"] for one in objects if one["kind"] == "PersistentVolume"] == [
        "/data/origin.git"
    ]


def test_an_origin_that_was_made_anew_starts_a_new_repo_server(workspace: Workspace, tmp_path: Path) -> None:
    def template() -> Json:
        objects = parts(workspace, on("node", str(tmp_path / "origin.git")))["Argo CD"]
        return named(objects, "Deployment", "argocd-repo-server")["spec"]["template"]

    (tmp_path / "origin.git").mkdir()
    first = template()
    assert template() == first
    (tmp_path / "origin.git").rename(tmp_path / "removed")
    (tmp_path / "origin.git").mkdir()
    assert template() != first


def test_an_address_of_a_git_server_needs_no_mount(workspace: Workspace) -> None:
    (workspace.root / bootstrap.SETTINGS).write_text("repository: https://git.example/team/wharf.git\n")
    objects = parts(workspace, on("node", None))["Argo CD"]
    assert not [one for one in objects if one["kind"] == "PersistentVolume"]


def test_a_folder_that_the_nodes_do_not_have_is_a_mistake(workspace: Workspace) -> None:
    with pytest.raises(Mistake, match=r"gitops/argocd\.yaml: repository: file:///srv"):
        parts(workspace, on("existing", None))


def test_another_namespace_of_argocd_is_a_mistake(workspace: Workspace) -> None:
    (workspace.root / bootstrap.SETTINGS).write_text("repository: https://git.example/wharf.git\nnamespace: cd\n")
    with pytest.raises(Mistake, match=r"gitops/argocd\.yaml: namespace"):
        parts(workspace, on("node"))


def test_each_namespace_that_a_model_may_come_to_is_a_tenant(workspace: Workspace) -> None:
    objects = parts(workspace, on("node"))["tenants"]
    names = {one["metadata"]["name"] for one in objects if one["kind"] == "Namespace"}
    assert names == {"diagnostics-dev", "diagnostics-staging", "diagnostics-prod"}


def test_a_login_of_this_machine_becomes_the_secret_that_an_environment_names(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for settings in sorted((workspace.root / "gitops/environments").glob("*.yaml")):
        text = settings.read_text().replace("registry: wharf.local", "registry: registry.example.com/models")
        settings.write_text(text + ("pull_secret: registry\n" if settings.stem == "dev" else ""))
    assert parts(workspace, on("kind"))["registry credentials"] == [], "without a login somebody else keeps it"

    login = {"auths": {"registry.example.com": {"auth": "dTpw"}, "elsewhere.example.com": {"auth": "eDp5"}}}
    (tmp_path / "config.json").write_text(json.dumps(login))
    found = parts(workspace, on("kind"))
    secrets = found["registry credentials"]
    assert {one["metadata"]["namespace"] for one in secrets} == {"modelwharf", "diagnostics-dev"}
    for secret in secrets:
        assert (secret["metadata"]["name"], secret["type"]) == ("registry", "kubernetes.io/dockerconfigjson")
        held = json.loads(secret["stringData"][".dockerconfigjson"])
        assert held == {"auths": {"registry.example.com": {"auth": "dTpw"}}}, "no other login leaves this machine"
    accounts = [
        one["metadata"]["namespace"]
        for objects in found.values()
        for one in objects
        if one["kind"] == "ServiceAccount" and one.get("imagePullSecrets") == [{"name": "registry"}]
    ]
    assert sorted(accounts) == ["diagnostics-dev", "modelwharf", "modelwharf"]


def test_argocd_may_write_exactly_the_kinds_that_releases_have() -> None:
    def plural(kind: str) -> str:
        word = kind.lower()
        return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"

    assert {(group, plural(kind)) for group, kind in bootstrap.KINDS} == set(rights.RELEASED)


def test_applied_is_everything_with_the_root_application_last(
    workspace: Workspace, access: Access, cluster: Cluster
) -> None:
    platform.apply(workspace, access, IMAGES)
    assert cluster.of("apps/v1/Deployment", "mlflow", "modelwharf")
    assert cluster.of("apps/v1/StatefulSet", "argocd-application-controller", "argocd")
    assert cluster.of("v1/ResourceQuota", "quota", "diagnostics-prod")
    sent = [path.partition("?")[0] for method, path in cluster.asked if method == "PATCH"]
    assert sent[-1].endswith("/applications/modelwharf")
    assert cluster.of("argoproj.io/v1alpha1/AppProject", "modelwharf", "argocd")


def test_mlflow_is_told_the_address_that_its_service_got(
    workspace: Workspace, access: Access, cluster: Cluster
) -> None:
    platform.apply(workspace, access, IMAGES)
    pod = cluster.of("apps/v1/Deployment", "mlflow", "modelwharf")["spec"]["template"]["spec"]
    assert "10.97.7.7:5000" in pod["containers"][0]["command"][-1]


def test_applied_again_definitions_of_kinds_are_not_sent_but_what_was_changed_is_repaired(
    workspace: Workspace, access: Access, cluster: Cluster
) -> None:
    platform.apply(workspace, access, IMAGES)
    first = cluster.sent("customresourcedefinitions")
    cluster.of("v1/ConfigMap", "argocd-cm", "argocd")["data"]["helm.enable"] = "true"
    platform.apply(workspace, access, IMAGES)
    assert first == 4 == cluster.sent("customresourcedefinitions")
    assert cluster.of("v1/ConfigMap", "argocd-cm", "argocd")["data"]["helm.enable"] == "false"


def test_the_root_application_is_the_merged_one(workspace: Workspace, access: Access, cluster: Cluster) -> None:
    merged = platform.root_objects(workspace)
    (workspace.root / bootstrap.ROOT).write_text("kind: ClusterRoleBinding\n")
    assert platform.root_objects(workspace) == merged
    assert [one["kind"] for one in merged] == ["AppProject", "Application"]


def test_without_a_merged_root_application_nothing_is_touched(
    workspace: Workspace, access: Access, cluster: Cluster
) -> None:
    git(workspace.root, "rm", "--quiet", bootstrap.ROOT)
    commit(workspace.root, "Remove")
    with pytest.raises(Mistake, match=r"gitops/root\.yaml: is not in commit"):
        platform.apply(workspace, access, IMAGES)
    assert cluster.asked == []


@pytest.mark.parametrize(
    ("kind", "name"), [("Namespace", "argocd"), ("CustomResourceDefinition", "applications.argoproj.io")]
)
def test_somebody_elses_argocd_is_left_alone(
    workspace: Workspace, access: Access, cluster: Cluster, kind: str, name: str
) -> None:
    api = "v1" if kind == "Namespace" else "apiextensions.k8s.io/v1"
    cluster.add({"apiVersion": api, "kind": kind, "metadata": {"name": name}})
    with pytest.raises(Mistake, match=f"{kind} {name}: is in the cluster already"):
        platform.apply(workspace, access, IMAGES)
    assert not [method for method, _ in cluster.asked if method != "GET"]


def test_a_workload_that_does_not_become_ready_is_named(
    workspace: Workspace, access: Access, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "_READY_ELSEWHERE_S", 0.0)
    monkeypatch.setattr(platform, "_LEAST_S", 0.05)
    monkeypatch.setattr(readiness, "_LOOK_S", 0.01)
    cluster.sick = {"argocd-repo-server"}
    with pytest.raises(Unavailable, match="argocd/argocd-repo-server is not Ready"):
        platform.apply(workspace, access, IMAGES)
    assert not any("/applications/" in path for _, path in cluster.asked)


def test_remove_takes_all_that_was_made_and_nothing_else(
    workspace: Workspace, access: Access, cluster: Cluster
) -> None:
    platform.apply(workspace, access, IMAGES)
    cluster.add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mine", "labels": {"a": "b"}}})
    mine = {"name": "mine.example", "labels": {}}
    cluster.add({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": mine})
    removed = platform.remove(workspace, access)
    left = {
        (obj["kind"], name)
        for (_, space, name), obj in cluster.objects.items()
        if not space and obj["kind"] not in ("Node",)
    }
    assert left == {("Namespace", "kube-system"), ("Namespace", "mine"), ("CustomResourceDefinition", "mine.example")}
    assert {"namespace argocd", "namespace modelwharf", "namespace diagnostics-dev"} <= set(removed)
    cluster.kinds.pop("/apis/argoproj.io/v1alpha1")  # the kinds go with their definitions
    assert platform.remove(workspace, access) == []


def test_releases_go_before_what_deletes_them(workspace: Workspace, access: Access, cluster: Cluster) -> None:
    platform.apply(workspace, access, IMAGES)
    for kind, name in (("ApplicationSet", "dev"), ("Application", "one-dev")):
        meta = {"name": name, "namespace": "argocd"}
        cluster.add({"apiVersion": "argoproj.io/v1alpha1", "kind": kind, "metadata": meta})
    platform.remove(workspace, access)
    deleted = [path.rpartition("/")[2] for method, path in cluster.asked if method == "DELETE"]
    assert deleted[:3] == ["modelwharf", "dev", "one-dev"]
    assert deleted.index("argocd") > deleted.index("one-dev")


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\nsearch x\nnameserver 2001:db8::1%eth0\n", ("192.0.2.1", "2001:db8::1")),
        ("nameserver 127.0.0.53\nnameserver ::1\n", ()),
        ("# nothing\n", ()),
    ],
)
def test_name_servers_are_those_that_a_pod_reaches(tmp_path: Path, text: str, servers: tuple[str, ...]) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    assert platform._resolvers(tmp_path / "resolv.conf") == servers
    assert platform._resolvers(tmp_path / "missing") == ()
