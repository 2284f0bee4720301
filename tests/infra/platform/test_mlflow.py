from __future__ import annotations

import pytest
from mlflow.server.security_utils import is_allowed_host_header

from infra.platform import mlflow
from tests.infra.platform.restricted import named, pods, requested, require_hardened, require_valid

IMAGE = "wharf.local/mlflow@sha256:" + "c" * 64
SQLITE = mlflow.Settings(IMAGE, mlflow.Volume(node_path="/data/mlflow"), addresses=("10.97.3.4",))
SERVERS = mlflow.Settings(
    IMAGE,
    database=mlflow.SecretKey("mlflow-database", "uri"),
    artifacts=mlflow.ArtifactStore("s3://bucket/models", "https://s3.example", "mlflow-artifacts"),
)


def container(settings):
    return pods(mlflow.objects(settings))["mlflow"]["containers"][0]


def option(settings, name):
    command = container(settings)["command"]
    return command[command.index(name) + 1] if name in command else None


def policy(settings, name="mlflow"):
    return named(mlflow.objects(settings), "NetworkPolicy", name)["spec"]


@pytest.mark.parametrize("settings", [SQLITE, SERVERS, mlflow.Settings(IMAGE)])
def test_objects_fit_their_schemas_and_pods_the_restricted_standard(settings):
    objects = mlflow.objects(settings)
    require_valid(objects)
    require_hardened(objects)


def test_the_namespace_admits_only_pods_of_the_restricted_standard():
    labels = named(mlflow.objects(SQLITE), "Namespace", "modelwharf")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_pod_has_no_credentials_of_the_cluster():
    assert pods(mlflow.objects(SQLITE))["mlflow"]["automountServiceAccountToken"] is False


def test_one_worker_and_no_jobs():
    assert option(SQLITE, "--workers") == "1"
    assert {"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"} in container(SQLITE)["env"]


@pytest.mark.parametrize(
    "host",
    [
        "mlflow:5000",
        "mlflow.modelwharf:5000",
        "mlflow.modelwharf.svc:5000",
        "mlflow.modelwharf.svc.cluster.local:5000",
        "10.97.3.4:5000",
        "localhost:15000",
        "127.0.0.1:5021",
    ],
)
def test_it_answers_to_its_names(host):
    assert is_allowed_host_header(mlflow.allowed_hosts(SQLITE), host)


@pytest.mark.parametrize("host", ["evil.example:5000", "10.97.3.5:5000", "mlflow.modelwharf.evil.example:5000", ""])
def test_it_answers_to_no_other_name(host):
    assert not is_allowed_host_header(mlflow.allowed_hosts(SQLITE), host)


def test_the_server_is_told_the_names():
    assert option(SQLITE, "--allowed-hosts") == ",".join(mlflow.allowed_hosts(SQLITE))


def test_sqlite_and_artifacts_are_on_the_volume():
    mount = next(one for one in container(SQLITE)["volumeMounts"] if one["name"] == "data")["mountPath"]
    assert option(SQLITE, "--backend-store-uri") == f"sqlite:///{mount}/mlflow.db"
    assert option(SQLITE, "--artifacts-destination") == f"{mount}/artifacts"


def test_two_servers_never_share_sqlite():
    assert named(mlflow.objects(SQLITE), "Deployment", "mlflow")["spec"]["strategy"] == {"type": "Recreate"}


def test_a_folder_of_the_node_becomes_the_volume_and_the_pods_own():
    objects = mlflow.objects(SQLITE)
    volume = named(objects, "PersistentVolume", "modelwharf-mlflow")["spec"]
    claim = named(objects, "PersistentVolumeClaim", "mlflow")["spec"]
    assert volume["local"] == {"path": "/data/mlflow"}
    assert volume["claimRef"] == {"namespace": "modelwharf", "name": "mlflow"}
    assert volume["persistentVolumeReclaimPolicy"] == "Retain"
    assert (claim["volumeName"], claim["storageClassName"]) == ("modelwharf-mlflow", "")
    assert pods(objects)["mlflow"]["securityContext"]["fsGroup"] == mlflow.USER


def test_a_storage_class_is_asked_for_a_volume():
    objects = mlflow.objects(mlflow.Settings(IMAGE, mlflow.Volume("5Gi", "gp3")))
    claim = named(objects, "PersistentVolumeClaim", "mlflow")["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("gp3", "5Gi")
    assert not [one for one in objects if one["kind"] == "PersistentVolume"]


def test_the_clusters_default_class_is_asked_by_naming_none():
    claim = named(mlflow.objects(mlflow.Settings(IMAGE)), "PersistentVolumeClaim", "mlflow")["spec"]
    assert "storageClassName" not in claim


def test_the_uri_of_a_database_is_only_in_its_secret():
    assert option(SERVERS, "--backend-store-uri") is None
    source = next(one for one in container(SERVERS)["env"] if one["name"] == "MLFLOW_BACKEND_STORE_URI")["valueFrom"]
    assert source == {"secretKeyRef": {"name": "mlflow-database", "key": "uri"}}


def test_artifacts_go_to_a_store_with_the_credentials_of_a_secret():
    assert option(SERVERS, "--artifacts-destination") == "s3://bucket/models"
    assert container(SERVERS)["envFrom"] == [{"secretRef": {"name": "mlflow-artifacts"}}]
    assert {"name": "MLFLOW_S3_ENDPOINT_URL", "value": "https://s3.example"} in container(SERVERS)["env"]


def test_without_anything_on_disk_there_is_no_volume():
    assert not [one for one in mlflow.objects(SERVERS) if one["kind"].startswith("PersistentVolume")]


def test_only_its_namespace_and_the_named_networks_reach_it():
    from dataclasses import replace

    peers = policy(SQLITE)["ingress"][0]["from"]
    assert peers == [{"podSelector": {}}]
    peers = policy(replace(SQLITE, from_addresses=("10.96.0.1/32",), from_namespaces=("kueue",)))["ingress"][0]["from"]
    assert peers[1]["namespaceSelector"]["matchExpressions"][0]["values"] == ["kueue"]
    assert peers[2] == {"ipBlock": {"cidr": "10.96.0.1/32"}}


def test_nothing_else_of_its_namespace_is_reached():
    assert policy(SQLITE, "default-deny") == {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}


def test_with_everything_on_disk_it_reaches_nothing():
    assert policy(SQLITE)["egress"] == []


def test_with_servers_it_reaches_their_ports_and_dns():
    ports = {port["port"] for rule in policy(SERVERS)["egress"] for port in rule["ports"]}
    assert ports == {53, 1053, 5432, 443, 9000}


def test_the_service_leads_to_the_pod():
    objects = mlflow.objects(SQLITE)
    service = named(objects, "Service", "mlflow")["spec"]
    labels = named(objects, "Deployment", "mlflow")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert service["ports"][0]["port"] == 5000
    assert service["ports"][0]["targetPort"] in [port["name"] for port in container(SQLITE)["ports"]]


def test_it_leaves_room_on_two_cores():
    assert requested(mlflow.objects(SQLITE), "cpu") <= 0.2
    assert requested(mlflow.objects(SQLITE), "memory") <= 768
