from __future__ import annotations

import copy

import pytest

from infra.platform import argocd, rights
from tests.infra.platform import upstream
from tests.infra.platform.restricted import named, pods, requested, require_hardened, require_valid

DIGEST = "@sha256:" + "a" * 64
IMAGES = {"argocd": f"wharf.local/argocd{DIGEST}", "redis": f"wharf.local/redis{DIGEST}"}
ORIGIN = argocd.Origin("/var/lib/somewhere/origin.git", "/srv/modelwharf/origin.git")
NODE = argocd.Settings(IMAGES, ORIGIN)


@pytest.fixture
def objects():
    return argocd.objects(upstream.argocd(), NODE)


@pytest.fixture
def full():
    return argocd.objects(upstream.argocd(full=True), argocd.Settings())


def policy_of(objects, name):
    return named(objects, "NetworkPolicy", name)["spec"]


def peers(rule):
    return [peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in rule["from"]]


def test_every_object_fits_its_schema(objects, full):
    require_valid(objects)
    require_valid(full)


def test_every_pod_keeps_the_restricted_standard(objects, full):
    require_hardened(objects)
    require_hardened(full)


def test_the_namespace_admits_only_pods_of_the_restricted_standard(objects):
    labels = named(objects, "Namespace", "argocd")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


def test_the_namespace_comes_first_and_every_object_that_can_have_one_has_it(objects):
    assert objects[0]["kind"] == "Namespace"
    cluster = {"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "PersistentVolume"}
    assert {one["metadata"].get("namespace") for one in objects if one["kind"] not in cluster} == {"argocd"}
    assert not [one for one in objects if one["kind"] in cluster and "namespace" in one["metadata"]]


def test_accounts_of_bindings_are_those_of_the_namespace(objects):
    subjects = [subject for one in objects for subject in one.get("subjects", [])]
    assert subjects and {subject["namespace"] for subject in subjects} == {"argocd"}


def test_upstream_is_not_changed():
    given = upstream.argocd(full=True)
    before = copy.deepcopy(given)
    argocd.objects(given, NODE)
    assert given == before


def test_nothing_but_plain_yaml_is_rendered(objects):
    data = named(objects, "ConfigMap", "argocd-cm")["data"]
    assert [data[key] for key in ("kustomize.enable", "helm.enable", "jsonnet.enable")] == ["false"] * 3


def test_nobody_is_anonymous_and_nobody_gets_a_shell(objects):
    data = named(objects, "ConfigMap", "argocd-cm")["data"]
    assert data["users.anonymous.enabled"] == "false"
    assert data["exec.enabled"] == "false"


def test_objects_are_tracked_by_annotation(objects):
    assert named(objects, "ConfigMap", "argocd-cm")["data"]["application.resourceTrackingMethod"] == "annotation"


def test_upstreams_settings_that_are_not_ours_stay(objects):
    assert "Lease" in named(objects, "ConfigMap", "argocd-cm")["data"]["resource.exclusions"]


def test_tuning_reaches_the_programs():
    tuned = argocd.Settings(tuning=argocd.Tuning(reconciliation_s=77, status_processors=5))
    objects = argocd.objects(upstream.argocd(), tuned)
    assert named(objects, "ConfigMap", "argocd-cm")["data"]["timeout.reconciliation"] == "77s"
    assert named(objects, "ConfigMap", "argocd-cmd-params-cm")["data"]["controller.status.processors"] == "5"


def test_a_change_of_configuration_starts_new_pods(objects):
    def stamp(found):
        template = named(found, "StatefulSet", "argocd-application-controller")["spec"]["template"]
        return template["metadata"]["annotations"]["modelwharf.io/configuration"]

    again = argocd.objects(upstream.argocd(), NODE)
    other = argocd.objects(upstream.argocd(), argocd.Settings(IMAGES, ORIGIN, argocd.Tuning(status_processors=1)))
    assert stamp(objects) == stamp(again) != stamp(other)


def test_the_controller_writes_only_what_releases_consist_of(objects):
    rules = named(objects, "ClusterRole", "argocd-application-controller")["rules"]
    everything = [rule for rule in rules if rule.get("resources") == ["*"]]
    assert [rule["verbs"] for rule in everything] == [["get", "list", "watch"]]
    written = {
        (group, resource)
        for rule in rules
        if set(rule["verbs"]) - {"get", "list", "watch"}
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert written == set(rights.RELEASED)


def test_the_web_server_changes_nothing_in_the_cluster_and_reads_no_secrets(full):
    rules = named(full, "ClusterRole", "argocd-server")["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}
    shown = {(group, name) for rule in rules for group in rule["apiGroups"] for name in rule["resources"]}
    assert shown > set(rights.RELEASED)
    assert shown > {("", "pods"), ("", "pods/log"), ("", "events"), ("apps", "replicasets")}
    assert not [name for _, name in shown if name in ("*", "secrets")]


def test_parts_that_nobody_uses_are_left_out(full):
    names = {one["metadata"]["name"] for one in full}
    assert not [name for name in names if name.startswith(("argocd-dex", "argocd-notifications"))]
    assert "argocd-server" in names


def test_application_sets_have_no_rights_outside_of_their_namespace(full):
    assert not [
        one
        for one in full
        if one["kind"].startswith("ClusterRole") and one["metadata"]["name"] == "argocd-applicationset-controller"
    ]


def test_only_argocd_reaches_redis(objects):
    rules = policy_of(objects, "argocd-redis")["ingress"]
    assert len(rules) == 1
    assert sorted(peers(rules[0])) == ["argocd-application-controller", "argocd-repo-server", "argocd-server"]
    assert rules[0]["ports"] == [{"port": 6379, "protocol": "TCP"}]


def test_what_no_policy_names_is_denied(objects):
    assert policy_of(objects, "default-deny") == {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}


def test_no_policy_lets_in_every_namespace(objects, full):
    for one in [*objects, *full]:
        if one["kind"] == "NetworkPolicy":
            for rule in one["spec"].get("ingress", []):
                assert rule["from"], one["metadata"]["name"]
                assert {"namespaceSelector": {}} not in rule["from"]


def test_a_repo_server_with_its_origin_on_disk_reaches_redis_and_dns_alone(objects):
    egress = policy_of(objects, "argocd-repo-server")["egress"]
    assert sorted(port["port"] for rule in egress for port in rule["ports"]) == [53, 53, 1053, 1053, 6379]


def test_a_repo_server_with_a_git_address_may_go_out(full):
    assert policy_of(full, "argocd-repo-server")["policyTypes"] == ["Ingress"]


def test_the_web_server_is_for_named_namespaces():
    def rules(settings):
        return policy_of(argocd.objects(upstream.argocd(full=True), settings), "argocd-server")["ingress"]

    assert [rule["ports"][0]["port"] for rule in rules(argocd.Settings())] == [8083]
    opened = rules(argocd.Settings(ingress_namespaces=("ingress",)))[1]
    assert opened["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["ingress"]


def test_our_images_take_the_place_of_upstreams(objects):
    images = {
        c["image"] for pod in pods(objects).values() for c in [*pod.get("initContainers", []), *pod["containers"]]
    }
    assert images == set(IMAGES.values())


def test_without_images_of_ours_upstreams_stay(full):
    images = {c["image"] for pod in pods(full).values() for c in pod["containers"]}
    assert images == {"quay.io/argoproj/argocd:v3.2.11", "public.ecr.aws/docker/library/redis:8.2.2-alpine"}


def test_redis_of_ours_is_started_by_name(objects, full):
    assert pods(objects)["argocd-redis"]["containers"][0]["command"] == ["redis-server"]
    assert "command" not in pods(full)["argocd-redis"]["containers"][0]


def test_the_copy_for_plugins_and_its_volume_are_gone(objects):
    pod = pods(objects)["argocd-repo-server"]
    assert "initContainers" not in pod
    assert "var-files" not in [volume["name"] for volume in pod["volumes"]]


def test_the_password_of_redis_is_still_made(objects):
    assert [one["name"] for one in pods(objects)["argocd-redis"]["initContainers"]] == ["secret-init"]


def test_the_origin_is_mounted_read_only_through_a_claim(objects):
    pod = pods(objects)["argocd-repo-server"]
    mount = next(one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "origin")
    claim = next(one for one in pod["volumes"] if one["name"] == "origin")["persistentVolumeClaim"]
    assert mount == {"name": "origin", "mountPath": ORIGIN.mount_path, "readOnly": True}
    assert claim["readOnly"] is True
    volume = named(objects, "PersistentVolume", claim["claimName"])["spec"]
    assert volume["hostPath"]["path"] == ORIGIN.host_path
    assert volume["accessModes"] == ["ReadOnlyMany"]
    assert volume["persistentVolumeReclaimPolicy"] == "Retain"


def test_another_origin_is_another_volume():
    def names(path):
        found = argocd.objects(upstream.argocd(), argocd.Settings(IMAGES, argocd.Origin(path, "/srv/o.git")))
        return {one["metadata"]["name"] for one in found if one["kind"] == "PersistentVolume"}

    assert names("/a").isdisjoint(names("/b"))


def test_a_folder_that_took_the_place_of_the_origin_starts_a_new_repo_server():
    def template(identity):
        origin = argocd.Origin(ORIGIN.host_path, ORIGIN.mount_path, identity)
        found = argocd.objects(upstream.argocd(), argocd.Settings(IMAGES, origin))
        return named(found, "Deployment", "argocd-repo-server")["spec"]["template"]

    assert template("1") == template("1") != template("2")


def test_git_may_read_the_origin_of_another_user_and_no_other(objects):
    text = named(objects, "ConfigMap", "modelwharf-git")["data"]["gitconfig"]
    assert text == f"[safe]\n\tdirectory = {ORIGIN.mount_path}\n"
    environment = {one["name"]: one["value"] for one in pods(objects)["argocd-repo-server"]["containers"][0]["env"]}
    assert environment["GIT_CONFIG_GLOBAL"] == "/app/config/git/gitconfig"


def test_only_the_repo_server_sees_the_origin(objects):
    seen = [name for name, pod in pods(objects).items() if "origin" in str(pod.get("volumes", []))]
    assert seen == ["argocd-repo-server"]


def test_without_an_origin_on_disk_there_is_no_volume(full):
    assert not [one for one in full if one["kind"].startswith("PersistentVolume")]


def test_it_leaves_room_on_two_cores(objects):
    assert requested(objects, "cpu") <= 0.3
    assert requested(objects, "memory") <= 768


@pytest.mark.parametrize(
    "name", ["argocd-redis", "argocd-application-controller", "argocd-cm", "appprojects.argoproj.io"]
)
def test_what_is_no_install_manifest_is_refused(name):
    without = [one for one in upstream.argocd() if one["metadata"]["name"] != name]
    with pytest.raises(ValueError, match=name):
        argocd.objects(without, NODE)


@pytest.mark.parametrize("file", ["core-install.yaml", "install.yaml"])
def test_the_real_install_manifest(file):
    install = upstream.real("github.com/argoproj/argo-cd/v3@v3.2.11", f"manifests/{file}")
    if install is None:
        pytest.skip("this machine has not downloaded the module of Argo CD")
    objects = argocd.objects(install, NODE)
    require_valid(objects)
    require_hardened(objects)
    read = {str(one) for one in objects if one["kind"] in ("Deployment", "StatefulSet")}
    # A key that no program reads would be a setting that does nothing.
    for key in named(objects, "ConfigMap", "argocd-cmd-params-cm")["data"]:
        assert any(f"'{key}'" in text for text in read), key
