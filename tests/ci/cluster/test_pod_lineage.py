"""Lineage from a running pod: each link between the pod and the release is checked, and a broken one is named.

The registry of models is a real MLflow and the images a small OCI registry; the cluster is a double.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml

from ci.cli import main
from ci.cluster import access
from ci.cluster.access import Access
from ci.cluster.pod_lineage import lineage
from ci.environments import load_all
from ci.errors import Mistake, Refusal, Unavailable
from ci.gate import gate
from ci.lineage import Lineage
from ci.registry import facts, register, set_facts
from ci.release import Release, dump, path_of
from ci.render import render_release
from ci.shell import git
from ci.workspace import Workspace, load_spec
from tests.ci.cluster.argo_objects import application
from tests.ci.cluster.image_registry import ImageRegistry, image_registry
from tests.ci.cluster.kube_double import KubeDouble, close_clients
from tests.ci.gated import add_model, add_run, fresh_name, logistic
from tests.conftest import make_workspace

pytestmark = pytest.mark.slow
OF_THE_POD = ["pod", "kubelet", "deployment", "application", "rendered"]
OF_THE_RELEASE = ["release", "version", "run", "data", "commit", "evidence", "artifact", "bento", "image"]

Json = dict[str, Any]


@dataclass
class Scene:
    """A released model and the cluster that runs it."""

    workspace: Workspace
    cluster: KubeDouble
    images: ImageRegistry
    release: Release

    @property
    def pod(self) -> Json:
        return self.cluster.of("v1/Pod", "p", self.namespace)

    @property
    def deployment(self) -> Json:
        return self.cluster.of("apps/v1/Deployment", self.release.model, self.namespace)

    @property
    def application(self) -> Json:
        return self.cluster.of("argoproj.io/v1alpha1/Application", f"{self.release.model}-dev", "argocd")

    @property
    def namespace(self) -> str:
        spec = load_spec(self.workspace, self.release.model)
        return load_all(self.workspace.root)[0].namespace_of(spec.team, spec.name)

    def lineage(self) -> Lineage:
        return lineage(self.workspace, self.namespace, "p")

    def broken(self) -> dict[str, str]:
        return {link.link: link.detail for link in self.lineage().links if not link.ok}


@pytest.fixture(scope="module")
def released(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Scene]:
    """A model that is registered and released once for all tests of this file."""
    folder = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch, KubeDouble(folder) as cluster, image_registry() as images:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
        workspace, name = make_workspace(folder / "repository"), fresh_name()
        add_model(workspace, name)
        add_run(workspace, mlflow_uri, name)
        gate(workspace, name)
        number = register(workspace, name)
        known = facts(workspace, name, number)
        bento = f"{name}:{'0' * 16}"
        model = {
            "home/bentoml/bento/src/model/serving.json": json.dumps({"file": "artifact.onnx"}).encode(),
            "home/bentoml/bento/src/model/artifact.onnx": logistic(),
        }
        digest = images.put(model, {"modelwharf.io/bento": bento, "org.opencontainers.image.revision": known.commit})
        release = Release(
            model=name,
            environment="dev",
            version=number,
            run=known.run,
            bento=bento,
            image=f"wharf.local/{name}@{digest}",
            artifact=f"sha256:{known.artifact}",
            evidence=f"sha256:{known.evidence}",
            data=f"sha256:{known.data}",
            commit=known.commit,
        )
        access.save(workspace, Access("node", cluster.kubeconfig, "double", "wharf.local", images.place, "/o.git"))
        commit = promote(workspace, release)
        found = Scene(workspace, cluster, images, release)
        cluster.add(*objects(found, commit))
        yield found
        close_clients(workspace)


@pytest.fixture
def scene(released: Scene, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Generator[Scene]:
    """The same for one test, which may change everything in it."""
    release, root = released.release, released.workspace.root
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.chdir(root)
    commit = git(root, "rev-parse", "HEAD")
    kept = copy.deepcopy(released.cluster.objects), dict(released.images.content)
    set_facts(released.workspace, release.model, release.version, bento=release.bento, image=release.image)
    yield released
    released.cluster.objects, released.images.content = kept
    git(root, "reset", "--quiet", "--hard", commit)


def promote(workspace: Workspace, release: Release) -> str:
    """Commit a release with its rendering; return the commit."""
    spec, environment = load_spec(workspace, release.model), load_all(workspace.root)[0]
    texts = {
        f"gitops/rendered/dev/{release.model}/{name}": text
        for name, text in render_release(release, spec, environment).items()
    }
    for path, text in {path_of("dev", release.model): dump(release), **texts}.items():
        (workspace.root / path).parent.mkdir(parents=True, exist_ok=True)
        (workspace.root / path).write_text(text)
    git(workspace.root, "add", "gitops")
    git(workspace.root, "commit", "--quiet", f"--message=Promote {release.model} version {release.version} to dev")
    return git(workspace.root, "rev-parse", "HEAD")


def objects(scene: Scene, commit: str) -> list[Json]:
    """What Argo CD, the Deployment controller and the kubelet make of the rendering in the working tree."""
    name = scene.release.model
    rendered = scene.workspace.root / f"gitops/rendered/dev/{name}/deployment.yaml"
    deployment = yaml.safe_load(rendered.read_text())
    space = deployment["metadata"]["namespace"]
    deployment["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = (
        f"{name}-dev:apps/Deployment:{space}/{name}"
    )
    template = copy.deepcopy(deployment["spec"]["template"])
    owner = [{"kind": "ReplicaSet", "name": f"{name}-5d8", "controller": True}]
    started = {"creationTimestamp": "2026-11-21T10:00:00Z", "ownerReferences": owner}
    container = {
        "name": "model",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "imageID": template["spec"]["containers"][0]["image"],
        "state": {"running": {}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "p", "namespace": space, **started},
        "spec": {**template["spec"], "nodeName": "node-1"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [container],
        },
    }
    return [deployment, pod, application(name, "dev", revision=commit)]


def test_every_link_of_a_good_pod_holds(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", "pod/p", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [link["link"] for link in told["links"]] == [*OF_THE_POD, *OF_THE_RELEASE]
    assert (told["pod"], told["model"], told["verified"]) == (f"{scene.namespace}/p", scene.release.model, True)
    by_name = {link["link"]: link for link in told["links"]}
    assert by_name["kubelet"]["value"] == scene.release.image.partition("@")[2]
    assert "src/model/artifact.onnx in it is the artifact" in by_name["image"]["detail"]
    assert by_name["commit"]["value"] == scene.release.commit
    for words in (["pod/p", "-n", scene.namespace], [f"pod/{scene.namespace}/p"]):
        assert main(["lineage", *words]) == 0
        assert "✓  kubelet" in capsys.readouterr().out


def test_another_image_than_the_one_asked_for_breaks_the_first_link(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.pod["status"]["containerStatuses"][0]["imageID"] = f"wharf.local/x@sha256:{'9' * 64}"
    assert "kubelet" in scene.broken()
    assert main(["lineage", "pod/p"]) == 3
    said = capsys.readouterr()
    assert "✗  kubelet" in said.out and f"ERROR  pod {scene.namespace}/p: kubelet sha256:999" in said.err


def test_an_image_that_was_never_released_breaks_the_link(scene: Scene) -> None:
    image = f"wharf.local/{scene.release.model}@sha256:{'9' * 64}"
    scene.pod["spec"]["containers"][0]["image"] = image
    scene.pod["status"]["containerStatuses"][0]["imageID"] = image
    found = scene.broken()
    assert found["kubelet"] == "no release of this model, now or before, has this image"
    assert found["rendered"] == "there is no release to compare with"


def test_a_pod_without_a_running_container_proves_nothing(scene: Scene) -> None:
    scene.pod["status"]["containerStatuses"][0]["imageID"] = ""
    assert "nothing that runs" in scene.broken()["kubelet"]


def test_a_pod_of_an_earlier_release_is_followed_to_that_one(scene: Scene) -> None:
    newer = replace(scene.release, version=2, image=f"wharf.local/{scene.release.model}@sha256:{'7' * 64}")
    commit = promote(scene.workspace, newer)
    old = scene.pod
    scene.cluster.add(*objects(scene, commit))
    scene.cluster.add(old)
    found = {link.link: link for link in scene.lineage().links}
    assert all(link.ok for link in found.values())
    assert found["deployment"].detail == "is at version 2 now; this pod is still one of version 1"
    assert found["version"].value == "1"


def test_a_deployment_that_was_edited_breaks_its_link(scene: Scene) -> None:
    scene.deployment["metadata"]["annotations"]["modelwharf.io/data"] = "sha256:other"
    assert "data is sha256:other, the release says" in scene.broken()["deployment"]


def test_a_label_that_lies_breaks_its_link(scene: Scene) -> None:
    scene.pod["metadata"]["labels"]["app.kubernetes.io/version"] = "9"
    assert "label says version 9" in scene.broken()["deployment"]


def test_a_pod_that_no_replica_set_made_breaks_its_link(scene: Scene) -> None:
    del scene.pod["metadata"]["ownerReferences"]
    assert "belongs to nobody" in scene.broken()["deployment"]


def test_without_an_application_somebody_else_made_it(scene: Scene) -> None:
    scene.cluster.objects = {key: each for key, each in scene.cluster.objects.items() if each["kind"] != "Application"}
    assert scene.broken()["application"] == "Argo CD has no such Application: somebody else made this pod"


def test_a_commit_that_is_not_in_main_breaks_the_link(scene: Scene) -> None:
    root = scene.workspace.root
    tree = git(root, "rev-parse", "HEAD^{tree}")
    stray = git(root, "commit-tree", "-m", "stray", tree)
    scene.application["status"]["sync"]["revision"] = stray
    assert scene.broken() == {"application": f"it has synced commit {stray[:12]}, which is not in the main branch"}


def test_a_deployment_that_differs_from_git_breaks_the_link(scene: Scene) -> None:
    scene.application["status"]["resources"] = [{"kind": "Deployment", "status": "OutOfSync"}]
    assert "is not the one of commit" in scene.broken()["application"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"command": ["sh"]}, "the pod's command is not the one of commit"),
        ({"env": [{"name": "WHARF_ARTIFACT_SHA256", "value": "0"}]}, "the pod's variable"),
    ],
)
def test_a_pod_that_was_started_otherwise_breaks_the_link(scene: Scene, change: Json, said: str) -> None:
    scene.pod["spec"]["containers"][0].update(change)
    assert said in scene.broken()["rendered"]


def test_a_changed_layer_breaks_the_link_to_the_image(scene: Scene) -> None:
    manifest = json.loads(scene.images.content[scene.release.image.partition("@")[2]])
    layer = manifest["layers"][-1]["digest"]
    scene.images.content[layer] = scene.images.content[layer] + b" "
    assert set(scene.broken()) == {"image"}


def test_another_model_in_the_image_breaks_the_link_to_it(scene: Scene) -> None:
    other = {
        "home/bentoml/bento/src/model/serving.json": b'{"file": "artifact.onnx"}',
        "home/bentoml/bento/src/model/artifact.onnx": b"another",
    }
    digest = scene.images.put(other, {})
    image = f"wharf.local/{scene.release.model}@{digest}"
    set_facts(scene.workspace, scene.release.model, scene.release.version, image=image)
    commit = promote(scene.workspace, replace(scene.release, image=image))
    scene.cluster.add(*objects(scene, commit))
    assert set(scene.broken()) == {"image"}
    assert "src/model/artifact.onnx in it has sha256" in scene.broken()["image"]


def test_an_image_with_the_labels_of_another_bento_breaks_the_link(scene: Scene) -> None:
    from ci.cluster import image

    digest = scene.images.put({}, {"modelwharf.io/bento": "other:1"})
    found = access.require(scene.workspace)
    with pytest.raises(Refusal, match=r"its label modelwharf\.io/bento is other:1"):
        image.verify(found, replace(scene.release, image=f"wharf.local/x@{digest}"))
    with pytest.raises(Mistake, match="no image"):
        image.verify(found, replace(scene.release, image=f"wharf.local/x@sha256:{'5' * 64}"))
    with pytest.raises(Unavailable):
        image.verify(replace(found, push="127.0.0.1:9"), scene.release)


def test_pods_that_cannot_be_followed(scene: Scene) -> None:
    with pytest.raises(Mistake, match="no pod 'nope'"):
        lineage(scene.workspace, None, "nope")
    other = copy.deepcopy(scene.pod)
    other["metadata"]["namespace"] = "elsewhere"
    scene.cluster.add(other)
    with pytest.raises(Mistake, match=rf"there are pods 'p' in {scene.namespace}, elsewhere|in elsewhere"):
        lineage(scene.workspace, None, "p")
    other["metadata"]["labels"] = {}
    with pytest.raises(Mistake, match="serves no model"):
        lineage(scene.workspace, "elsewhere", "p")


def test_away_from_a_cluster_the_next_step_is_named(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", scene.release.model]) == 2
    assert "--env: is missing" in capsys.readouterr().err
    kept = access.require(scene.workspace)
    access.forget(scene.workspace)
    assert main(["lineage", "pod/p"]) == 4
    assert "make cluster" in capsys.readouterr().err
    access.save(scene.workspace, kept)
