"""The configuration files of the node's parts: pure functions from addresses and folders to text."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from typing import Any

import yaml

from ci.cluster.node import certificates
from ci.cluster.node.addresses import Addresses
from ci.cluster.node.layout import BRIDGE, DOMAIN, KUBELET_PORT, NODE, REGISTRY_NAME, Layout

CNI_PLUGINS = "/usr/lib/cni"  # where Debian's containernetworking-plugins puts them
CONTEXT = "modelwharf"
MAX_PODS = 250
USERS = ("controller-manager", "scheduler", "kubelet", "kube-proxy")


def write(layout: Layout, addresses: Addresses, *, sandbox_image: str, snapshotter: str) -> None:
    """Write every configuration file; what holds a key is readable by root only."""
    folder = layout.configuration
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    texts = {
        "admission.yaml": admission(),
        "audit.yaml": audit(),
        "kubelet.yaml": kubelet(layout, addresses),
        "kube-proxy.yaml": kube_proxy(layout, addresses),
        "containerd.toml": containerd(layout, sandbox_image, snapshotter),
        "registry.yaml": registry(layout, addresses),
        "cni/10-modelwharf.conflist": cni(layout, addresses),
        f"certs.d/{REGISTRY_NAME}/hosts.toml": hosts(addresses),
    }
    texts |= {f"{user}.kubeconfig": kubeconfig(layout, addresses, user) for user in USERS}
    for name, text in texts.items():
        _write_changed(folder / name, text)
    _write_changed(layout.admin, portable_kubeconfig(layout, addresses, "admin"))
    encryption = folder / "encryption.yaml"
    if not encryption.is_file():  # a new key could not read the old Secrets
        certificates.write_private(encryption, encryption_at_rest(secrets.token_bytes(32)).encode())


def _write_changed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        certificates.write_private(path, text.encode())


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False)


# -- the API server ----------------------------------------------------------------------------------------------------


def encryption_at_rest(key: bytes) -> str:
    """Return the file that makes the API server encrypt Secrets with `key` (32 bytes) before etcd sees them."""
    encoded = base64.b64encode(key).decode()
    secretbox = {"secretbox": {"keys": [{"name": "first", "secret": encoded}]}}
    return _yaml(
        {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "EncryptionConfiguration",
            "resources": [{"resources": ["secrets"], "providers": [secretbox, {"identity": {}}]}],
        }
    )


def admission() -> str:
    """Return the admission settings: a namespace without labels is held to the Pod Security profile `baseline`."""
    pod_security = {
        "apiVersion": "pod-security.admission.config.k8s.io/v1",
        "kind": "PodSecurityConfiguration",
        "defaults": {"enforce": "baseline", "enforce-version": "latest"},
        "exemptions": {"usernames": [], "runtimeClasses": [], "namespaces": ["kube-system"]},
    }
    return _yaml(
        {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AdmissionConfiguration",
            "plugins": [{"name": "PodSecurity", "configuration": pod_security}],
        }
    )


def audit() -> str:
    """Return the audit policy: who changed what, without contents; not what the parts tell each other all day."""
    writes = {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]}
    return _yaml(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "userGroups": ["system:nodes"]},
                {
                    "level": "None",
                    "resources": [
                        {"group": "coordination.k8s.io", "resources": ["leases"]},
                        {"group": "", "resources": ["events"]},
                        {"group": "events.k8s.io", "resources": ["events"]},
                    ],
                },
                {
                    "level": "None",
                    "users": [
                        "system:kube-scheduler",
                        "system:kube-controller-manager",
                        "system:apiserver",
                        "modelwharf:probe",
                    ],
                },
                writes,
                {"level": "None"},
            ],
        }
    )


# -- users -------------------------------------------------------------------------------------------------------------


def kubeconfig(layout: Layout, addresses: Addresses, user: str) -> str:
    """Return the kubeconfig of a part; it points to the files of its certificate."""
    folder = layout.certificates
    return _kubeconfig(
        {"server": addresses.server, "certificate-authority": str(_authority(layout))},
        {
            "client-certificate": str(certificates.certificate(folder, user)),
            "client-key": str(certificates.key(folder, user)),
        },
    )


def portable_kubeconfig(layout: Layout, addresses: Addresses, user: str) -> str:
    """Return a kubeconfig that holds the certificate itself, so that it can be copied."""
    folder = layout.certificates

    def embedded(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return _kubeconfig(
        {"server": addresses.server, "certificate-authority-data": embedded(_authority(layout))},
        {
            "client-certificate-data": embedded(certificates.certificate(folder, user)),
            "client-key-data": embedded(certificates.key(folder, user)),
        },
    )


def _authority(layout: Layout) -> Path:
    return certificates.certificate(layout.certificates, certificates.CLUSTER)


def _kubeconfig(cluster: dict[str, str], user: dict[str, str]) -> str:
    return _yaml(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": CONTEXT, "cluster": cluster}],
            "users": [{"name": CONTEXT, "user": user}],
            "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT}}],
            "current-context": CONTEXT,
        }
    )


# -- the node ----------------------------------------------------------------------------------------------------------


def kubelet(layout: Layout, addresses: Addresses) -> str:
    """Return the kubelet's configuration."""
    folder = layout.certificates
    return _yaml(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": addresses.node,
            "port": KUBELET_PORT,
            "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(_authority(layout))},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificates.certificate(folder, "kubelet-serving")),
            "tlsPrivateKeyFile": str(certificates.key(folder, "kubelet-serving")),
            "tlsMinVersion": "VersionTLS12",
            "healthzBindAddress": "127.0.0.1",
            "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
            "cgroupDriver": "cgroupfs",  # works on every machine: with systemd or without, cgroups v1 or v2
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [addresses.dns],
            "clusterDomain": DOMAIN,
            "podLogsDir": str(layout.pod_logs),
            "volumePluginDir": str(layout.kubelet / "volume-plugins"),
            "maxPods": MAX_PODS,
            "serializeImagePulls": False,
            "maxParallelImagePulls": 3,
            "containerLogMaxSize": "10Mi",
            "containerLogMaxFiles": 2,
            "nodeStatusUpdateFrequency": "10s",
            # In bytes: a share of a large disk that others fill too would end pods for nothing.
            "evictionHard": {
                "memory.available": "200Mi",
                "nodefs.available": "2Gi",
                "imagefs.available": "2Gi",
                "nodefs.inodesFree": "2%",
            },
            # Images that no pod uses are removed late: they come again from the registry on this machine.
            "imageGCHighThresholdPercent": 95,
            "imageGCLowThresholdPercent": 90,
            "imageMinimumGCAge": "10m",
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "eventRecordQPS": 50,
            "enableDebuggingHandlers": True,  # `kubectl logs` and `exec`, with authorization by the API server
        }
    )


def kube_proxy(layout: Layout, addresses: Addresses) -> str:
    """Return kube-proxy's configuration: iptables, node ports on the node's own address only, no sysctl touched."""
    return _yaml(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "hostnameOverride": NODE,
            "bindAddress": addresses.node,
            "clientConnection": {"kubeconfig": str(layout.configuration / "kube-proxy.kubeconfig")},
            "clusterCIDR": addresses.pods,
            "detectLocalMode": "ClusterCIDR",
            "nodePortAddresses": ["primary"],
            "iptables": {"localhostNodePorts": False, "minSyncPeriod": "200ms", "syncPeriod": "30s"},
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
        }
    )


def containerd(layout: Layout, sandbox_image: str, snapshotter: str) -> str:
    """Return containerd's configuration: everything below our folders, images of our registry's name from our registry.

    `restrict_oom_score_adj`: where the machine's root may not lower a process's score, runc fails without it.
    """
    run = layout.run
    return f"""version = 2
root = "{layout.containerd}"
state = "{run}/containerd"

[grpc]
  address = "{layout.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{layout.containerd}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{layout.configuration}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{run}/runc"

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{layout.configuration}/certs.d"
"""


def hosts(addresses: Addresses) -> str:
    """Return containerd's file that sends our registry's name to the registry on this machine, and nowhere else."""
    url = f"http://{addresses.registry}"
    return f'server = "{url}"\n\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'


def cni(layout: Layout, addresses: Addresses) -> str:
    """Return the network of the pods: one bridge, addresses from one range, ports of the host where a pod asks."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isDefaultGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "mtu": addresses.mtu,
        "ipam": {
            "type": "host-local",
            "dataDir": str(layout.state / "cni"),
            "ranges": [[{"subnet": addresses.pods, "gateway": addresses.node}]],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": CONTEXT, "plugins": [bridge, portmap]}, indent=2)


def registry(layout: Layout, addresses: Addresses) -> str:
    """Return the configuration of the image registry: on loopback only, blobs that lost their image can be deleted."""
    return _yaml(
        {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(layout.state / "registry")},
                "delete": {"enabled": True},
                "cache": {"blobdescriptor": "inmemory"},
            },
            "http": {"addr": addresses.registry},
        }
    )
