"""The client of the Kubernetes API on a real one, and what it makes of pods that a real kubelet cannot start."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from ci.cluster import pods
from ci.cluster.kube import Kube, Rejected
from ci.errors import Unavailable
from ci.shell import CommandFailed
from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster

Json = dict[str, Any]


@pytest.fixture(scope="module")
def space(cluster: Cluster) -> Iterator[str]:
    """A namespace of these tests' own."""
    name = f"test-kube-{uuid.uuid4().hex[:6]}"
    cluster.kube.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}])
    yield name
    cluster.kube.delete("v1/Namespace", name, wait_s=120)


def settings(space: str, **data: str) -> Json:
    metadata = {"name": "settings", "namespace": space, "labels": {"test": "kube"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def pod(cluster: Cluster, space: str, name: str, code: str, **container: Any) -> Json:
    """A pod that runs Python `code`, started."""
    return cluster.kube.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": space},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {"name": "model", "image": cluster.image, "command": ["python3", "-u", "-c", code], **container}
                ],
            },
        }
    )


def reason(cluster: Cluster, space: str, name: str) -> str:
    """Return why the pod is not ready, once it says so."""

    def told() -> str:
        found = cluster.kube.get("v1/Pod", name, space)
        return pods.read(found).reason if found else ""

    return cluster.kube.wait(told, 90) or "it said nothing"


def test_objects_are_applied_read_changed_and_deleted(cluster: Cluster, space: str) -> None:
    kube = cluster.kube
    kube.apply([settings(space, size="1")])
    kube.apply([settings(space, size="2")])
    found = kube.get("v1/ConfigMap", "settings", space)
    assert found is not None and found["data"] == {"size": "2"}
    assert [owner["manager"] for owner in found["metadata"]["managedFields"]] == ["modelwharf"]
    assert kube.patch("v1/ConfigMap", "settings", space, {"data": {"colour": "red"}})["data"]["colour"] == "red"
    kube.apply([settings(space, size="3")])  # what somebody else has set stays
    assert [each["data"] for each in kube.list("v1/ConfigMap", space, "test=kube")] == [{"size": "3", "colour": "red"}]
    with pytest.raises(Rejected) as error:
        kube.create(settings(space))
    assert error.value.reason == "AlreadyExists"
    assert kube.delete("v1/ConfigMap", "settings", space, wait_s=10)
    assert not kube.delete("v1/ConfigMap", "settings", space)


def test_a_kind_and_an_object_of_it_are_applied_in_one_go(cluster: Cluster, space: str) -> None:
    names = {"plural": "boats", "singular": "boat", "kind": "Boat"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    definition: Json = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.test.modelwharf.io"},
        "spec": {
            "group": "test.modelwharf.io",
            "scope": "Namespaced",
            "names": names,
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    boat = {"apiVersion": "test.modelwharf.io/v1", "kind": "Boat", "metadata": {"name": "b", "namespace": space}}
    try:
        cluster.kube.apply([boat, definition])
        assert cluster.kube.get("test.modelwharf.io/v1/Boat", "b", space)
    finally:
        cluster.kube.delete("apiextensions.k8s.io/v1/CustomResourceDefinition", "boats.test.modelwharf.io", wait_s=60)
    assert Kube(cluster.access.kubeconfig).get("test.modelwharf.io/v1/Boat", "b", space) is None


def test_what_the_server_refuses_is_one_line(cluster: Cluster, space: str) -> None:
    wrong = settings(space)
    wrong["metadata"]["name"] = "not_a_name"
    begun = time.monotonic()
    with pytest.raises(Rejected) as error:
        cluster.kube.apply([wrong])
    assert error.value.status == 422 and "not_a_name" in error.value.lines[0] and len(error.value.lines) == 1
    assert time.monotonic() - begun < 10, "what is invalid is not tried again"


def test_commands_and_logs_of_a_pod(cluster: Cluster, space: str) -> None:
    kube = cluster.kube
    code = "import time\nprint('first')\nwhile True: time.sleep(0.2); print('more')"
    pod(cluster, space, "talks", code)
    assert kube.wait(lambda: pods.read(kube.get("v1/Pod", "talks", space) or {}).ready, 90)
    for _ in range(10):
        assert kube.run("talks", space, ["python3", "-c", "print('x' * 100_000, end='')"]) == "x" * 100_000
    with pytest.raises(CommandFailed) as failed:
        kube.run("talks", space, ["python3", "-c", "import sys; print('why', file=sys.stderr); sys.exit(7)"])
    assert (failed.value.code, failed.value.stderr.strip()) == (7, "why")
    with pytest.raises(Unavailable, match="said nothing for 1 seconds"):
        kube.run("talks", space, ["python3", "-c", "import time; time.sleep(20)"], timeout_s=1)
    with pytest.raises(Rejected):
        kube.run("nobody", space, ["true"])
    assert next(kube.logs("talks", space)) == "first"
    followed = kube.logs("talks", space, follow=True, tail=0)
    assert [next(followed) for _ in range(3)] == ["more"] * 3
    ended = threading.Event()

    def read() -> None:
        for _ in kube.logs("talks", space, follow=True, tail=1):
            pass
        ended.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    kube.delete("v1/Pod", "talks", space, wait_s=60)
    assert ended.wait(30), "a log that is followed ends with its pod"
    followed.close()


def test_the_reason_of_pods_that_do_not_start(cluster: Cluster, space: str) -> None:
    name = cluster.image.partition("@")[0].rpartition(":")[0] or cluster.image.partition("@")[0]
    pod(cluster, space, "no-image", "", image=f"{name}@sha256:{'0' * 64}")
    pod(cluster, space, "crashes", "print('these are its last words'); raise SystemExit(3)")
    pod(cluster, space, "too-big", "", resources={"requests": {"cpu": "1000"}})
    limit = {"requests": {"memory": "32Mi"}, "limits": {"memory": "32Mi"}}
    pod(cluster, space, "eats", "x = bytearray(1 << 30); x[:] = b'1' * len(x)", resources=limit)
    pod(cluster, space, "no-root", "", securityContext={"runAsNonRoot": True, "runAsUser": 0})
    assert reason(cluster, space, "no-image") == f"its image {name}@sha256:{'0' * 64} cannot be pulled: not found"
    assert reason(cluster, space, "crashes").startswith("ends with code 3")
    assert list(cluster.kube.logs("crashes", space)) == ["these are its last words"]
    found = reason(cluster, space, "too-big")
    assert found.startswith("no node takes it: 0/") and "Insufficient cpu" in found
    assert reason(cluster, space, "eats") == "was killed for using more memory than its limit of 32Mi"
    assert reason(cluster, space, "no-root").startswith("CreateContainerConfigError: ")


def test_the_digest_is_the_one_that_the_kubelet_runs(cluster: Cluster, space: str) -> None:
    pod(cluster, space, "runs", "import time; time.sleep(600)")

    def image() -> str:
        found = cluster.kube.get("v1/Pod", "runs", space)
        return pods.read(found).image if found else ""

    digest = cluster.kube.wait(image, 60) or ""
    assert digest.startswith("sha256:") and len(digest) == 71
    if "@" in cluster.image:
        assert digest == cluster.image.partition("@")[2]
