"""The commands of the node's parts, in the order in which they are started."""

from __future__ import annotations

import os
from pathlib import Path

from ci.cluster.node import certificates
from ci.cluster.node.addresses import Addresses
from ci.cluster.node.layout import (
    API_PORT,
    DOMAIN,
    ETCD_PEER_PORT,
    ETCD_PORT,
    KUBELET_PORT,
    NODE,
    Layout,
)
from ci.cluster.node.parts import Part, Probe

_LOOPBACK = "127.0.0.1"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def wanted(layout: Layout, addresses: Addresses, programs: dict[str, Path]) -> list[Part]:
    """Return every part of the node; `programs` are the Kubernetes programs by name."""
    return [
        _registry(layout, addresses),
        _containerd(layout, addresses),
        _etcd(layout),
        _apiserver(layout, addresses, programs["kube-apiserver"]),
        _controller_manager(layout, addresses, programs["kube-controller-manager"]),
        _scheduler(layout, programs["kube-scheduler"]),
        _kube_proxy(layout, programs["kube-proxy"]),
        _kubelet(layout, addresses, programs["kubelet"]),
    ]


def _environment(**more: str) -> dict[str, str]:
    return {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **more}


def _api_probe(layout: Layout, host: str, port: int, path: str) -> Probe:
    folder = layout.certificates
    return Probe(
        host=host,
        port=port,
        path=path,
        authority=str(certificates.certificate(folder, certificates.CLUSTER)),
        certificate=str(certificates.certificate(folder, "probe")),
        key=str(certificates.key(folder, "probe")),
    )


def _pair(layout: Layout, *names: str) -> tuple[str, ...]:
    """Return the files of certificates and their keys: a part is started anew when they are renewed."""
    folder = layout.certificates
    return tuple(str(file(folder, name)) for name in names for file in (certificates.certificate, certificates.key))


def _authority(layout: Layout, name: str = certificates.CLUSTER) -> str:
    return str(certificates.certificate(layout.certificates, name))


def _registry(layout: Layout, addresses: Addresses) -> Part:
    config = str(layout.configuration / "registry.yaml")
    return Part(
        "registry",
        ("docker-registry", "serve", config),
        _environment(OTEL_TRACES_EXPORTER="none"),
        files=(config,),
        probe=Probe(host=_LOOPBACK, port=addresses.registry_port),
    )


def _containerd(layout: Layout, addresses: Addresses) -> Part:
    config = str(layout.configuration / "containerd.toml")
    # Images of registries in the internet may need a proxy; ours never does.
    proxy = {name: os.environ[name] for name in _PROXY if name in os.environ}
    if proxy:
        given = proxy.get("NO_PROXY") or proxy.get("no_proxy") or ""
        proxy["NO_PROXY"] = proxy["no_proxy"] = ",".join(filter(None, [given, _LOOPBACK, addresses.node]))
    return Part(
        "containerd",
        ("containerd", "--config", config),
        _environment(**proxy),
        files=(config,),
        probe=Probe(unix=str(layout.containerd_socket)),
    )


def _etcd(layout: Layout) -> Part:
    folder = layout.certificates
    client, peer = f"https://{_LOOPBACK}:{ETCD_PORT}", f"https://{_LOOPBACK}:{ETCD_PEER_PORT}"
    authority = _authority(layout, certificates.ETCD)
    cert, key = str(certificates.certificate(folder, "etcd")), str(certificates.key(folder, "etcd"))
    return Part(
        "etcd",
        (
            *("etcd", f"--name={NODE}", f"--data-dir={layout.state / 'etcd'}"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            *(f"--initial-cluster={NODE}={peer}", "--client-cert-auth", "--peer-client-cert-auth"),
            *(f"--trusted-ca-file={authority}", f"--cert-file={cert}", f"--key-file={key}"),
            *(f"--peer-trusted-ca-file={authority}", f"--peer-cert-file={cert}", f"--peer-key-file={key}"),
            *("--quota-backend-bytes=8589934592", "--logger=zap", "--log-level=warn"),
        ),
        _environment(),
        files=(authority, *_pair(layout, "etcd")),
        probe=Probe(host=_LOOPBACK, port=ETCD_PORT),
    )


def _apiserver(layout: Layout, addresses: Addresses, program: Path) -> Part:
    folder, config = layout.certificates, layout.configuration
    etcd, cluster = _authority(layout, certificates.ETCD), _authority(layout)
    front = _authority(layout, certificates.FRONT_PROXY)
    tokens = certificates.key(folder, "service-account"), folder / "service-account.pub"
    settings = [str(config / name) for name in ("admission.yaml", "audit.yaml", "encryption.yaml")]

    def crt(name: str) -> Path:
        return certificates.certificate(folder, name)

    def key(name: str) -> Path:
        return certificates.key(folder, name)

    return Part(
        "kube-apiserver",
        (
            str(program),
            *(f"--bind-address={addresses.node}", f"--advertise-address={addresses.node}"),
            *(f"--secure-port={API_PORT}", f"--service-cluster-ip-range={addresses.services}"),
            *(f"--tls-cert-file={crt('apiserver')}", f"--tls-private-key-file={key('apiserver')}"),
            *("--tls-min-version=VersionTLS12", f"--client-ca-file={cluster}", "--anonymous-auth=false"),
            *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
            *(f"--admission-control-config-file={settings[0]}", f"--audit-policy-file={settings[1]}"),
            *(f"--audit-log-path={layout.logs / 'audit.jsonl'}", "--audit-log-mode=batch"),
            *("--audit-log-maxsize=20", "--audit-log-maxbackup=1"),
            f"--encryption-provider-config={settings[2]}",
            *(f"--etcd-servers=https://{_LOOPBACK}:{ETCD_PORT}", f"--etcd-cafile={etcd}"),
            *(f"--etcd-certfile={crt('etcd-client')}", f"--etcd-keyfile={key('etcd-client')}"),
            f"--kubelet-certificate-authority={cluster}",
            f"--kubelet-client-certificate={crt('apiserver-kubelet')}",
            f"--kubelet-client-key={key('apiserver-kubelet')}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
            *(f"--service-account-signing-key-file={tokens[0]}", f"--service-account-key-file={tokens[1]}"),
            *(f"--requestheader-client-ca-file={front}", "--requestheader-allowed-names=front-proxy-client"),
            *("--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group"),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            *(f"--proxy-client-cert-file={crt('front-proxy')}", f"--proxy-client-key-file={key('front-proxy')}"),
            *("--profiling=false", "--event-ttl=1h"),
        ),
        _environment(),
        files=(
            *(etcd, cluster, front, *settings, *map(str, tokens)),
            *_pair(layout, "apiserver", "etcd-client", "apiserver-kubelet", "front-proxy"),
        ),
        after=("etcd",),
        probe=_api_probe(layout, addresses.node, API_PORT, "/readyz"),
        grace_s=5.0,  # it would wait a minute for requests that watch; what it acknowledged is in etcd
    )


def _controller_manager(layout: Layout, addresses: Addresses, program: Path) -> Part:
    folder = layout.certificates
    config = str(layout.configuration / "controller-manager.kubeconfig")
    tokens = str(certificates.key(folder, "service-account"))
    return Part(
        "kube-controller-manager",
        (
            str(program),
            *_api_clients(config),
            *_loopback_server(layout, "controller-manager-serving"),
            *(f"--service-account-private-key-file={tokens}", f"--root-ca-file={_authority(layout)}"),
            *("--use-service-account-credentials=true", f"--cluster-cidr={addresses.pods}"),
            *("--allocate-node-cidrs=false", f"--service-cluster-ip-range={addresses.services}"),
            f"--flex-volume-plugin-dir={layout.kubelet / 'volume-plugins'}",
            *("--terminated-pod-gc-threshold=200", "--kube-api-qps=100", "--kube-api-burst=200"),
        ),
        _environment(),
        files=(
            *(config, tokens, _authority(layout)),
            *_pair(layout, "controller-manager", "controller-manager-serving"),
        ),
        after=("kube-apiserver",),
        probe=_api_probe(layout, _LOOPBACK, 10257, "/healthz"),
    )


def _scheduler(layout: Layout, program: Path) -> Part:
    config = str(layout.configuration / "scheduler.kubeconfig")
    return Part(
        "kube-scheduler",
        (
            str(program),
            *_api_clients(config),
            *_loopback_server(layout, "scheduler-serving"),
            *("--kube-api-qps=100", "--kube-api-burst=200"),
        ),
        _environment(),
        files=(config, *_pair(layout, "scheduler", "scheduler-serving")),
        after=("kube-apiserver",),
        probe=_api_probe(layout, _LOOPBACK, 10259, "/healthz"),
    )


def _api_clients(config: str) -> tuple[str, ...]:
    # There is one of each: to wait for the lease of one that was killed would only cost time.
    return (
        *(f"--kubeconfig={config}", f"--authentication-kubeconfig={config}"),
        *(f"--authorization-kubeconfig={config}", "--leader-elect=false", "--profiling=false"),
    )


def _loopback_server(layout: Layout, name: str) -> tuple[str, ...]:
    folder = layout.certificates
    return (
        f"--bind-address={_LOOPBACK}",
        f"--tls-cert-file={certificates.certificate(folder, name)}",
        f"--tls-private-key-file={certificates.key(folder, name)}",
    )


def _kube_proxy(layout: Layout, program: Path) -> Part:
    config = str(layout.configuration / "kube-proxy.yaml")
    user = str(layout.configuration / "kube-proxy.kubeconfig")
    return Part(
        "kube-proxy",
        (str(program), f"--config={config}"),
        _environment(),
        files=(config, user, *_pair(layout, "kube-proxy")),
        after=("kube-apiserver",),
        probe=Probe(host=_LOOPBACK, port=10256),
    )


def _kubelet(layout: Layout, addresses: Addresses, program: Path) -> Part:
    config = str(layout.configuration / "kubelet.yaml")
    user = str(layout.configuration / "kubelet.kubeconfig")
    return Part(
        "kubelet",
        (
            *(str(program), f"--config={config}", f"--kubeconfig={user}", f"--root-dir={layout.kubelet}"),
            *(f"--cert-dir={layout.kubelet / 'pki'}", f"--hostname-override={NODE}", f"--node-ip={addresses.node}"),
        ),
        _environment(),
        files=(config, user, _authority(layout), *_pair(layout, "kubelet", "kubelet-serving")),
        after=("kube-apiserver", "containerd"),
        probe=Probe(host=addresses.node, port=KUBELET_PORT),
    )
