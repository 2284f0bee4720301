from __future__ import annotations

import pytest

from infra.platform import rollouts
from tests.infra.platform import upstream
from tests.infra.platform.restricted import named, pods, require_hardened, require_valid

IMAGE = "wharf.local/rollouts@sha256:" + "b" * 64


@pytest.fixture
def objects():
    return rollouts.objects(upstream.rollouts(), rollouts.Settings(IMAGE))


def test_every_object_fits_its_schema(objects):
    require_valid(objects)


def test_every_pod_keeps_the_restricted_standard(objects):
    require_hardened(objects)


def test_the_namespace_admits_only_pods_of_the_restricted_standard(objects):
    labels = named(objects, "Namespace", "argo-rollouts")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_image_is_the_given_one(objects):
    container = pods(objects)["argo-rollouts"]["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == (IMAGE, "IfNotPresent")


@pytest.mark.parametrize("image", ["quay.io/argoproj/argo-rollouts:latest", "quay.io/argoproj/argo-rollouts"])
def test_an_image_that_is_not_pinned_is_refused(image):
    with pytest.raises(ValueError, match="not pinned"):
        rollouts.objects(upstream.rollouts(), rollouts.Settings(image))


def test_a_version_is_a_pin():
    found = rollouts.objects(upstream.rollouts(), rollouts.Settings("quay.io/argoproj/argo-rollouts:v1.8.3"))
    assert pods(found)["argo-rollouts"]["containers"][0]["image"].endswith(":v1.8.3")


def test_two_controllers_never_run_at_a_time(objects):
    # They elect none, so that one is at work at once.
    assert named(objects, "Deployment", "argo-rollouts")["spec"]["strategy"] == {"type": "Recreate"}
    assert "--leader-elect=false" in pods(objects)["argo-rollouts"]["containers"][0]["args"]


def test_only_monitoring_reaches_it(objects):
    spec = named(objects, "NetworkPolicy", "argo-rollouts")["spec"]
    assert spec["podSelector"] == {}
    assert [rule["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] for rule in spec["ingress"]] == [
        ["monitoring"]
    ]


def test_what_is_no_install_manifest_is_refused():
    with pytest.raises(ValueError, match="not an install manifest"):
        rollouts.objects([], rollouts.Settings(IMAGE))


def test_the_real_install_manifest():
    install = upstream.real("github.com/argoproj/argo-rollouts@v1.8.3", "manifests/install.yaml")
    if install is None:
        pytest.skip("this machine has not downloaded the module of Argo Rollouts")
    objects = rollouts.objects(install, rollouts.Settings(IMAGE))
    require_valid(objects)
    require_hardened(objects)
