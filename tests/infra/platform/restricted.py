"""The Pod Security Standard "restricted" as rules on a pod's spec, and what is asked of every pod of ours beyond it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from typing import Any

import kubernetes_validate

Object = dict[str, Any]
KUBERNETES = "1.34"
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def faults(pod: Object) -> list[str]:
    """Return what the standard forbids in this pod's spec, one line each."""
    found = [f"{word} is set" for word in ("hostNetwork", "hostPID", "hostIPC") if pod.get(word)]
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']} is a {kind}" for kind in set(volume) - {"name"} if kind not in _VOLUMES]
    whole = pod.get("securityContext", {})
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        name, own = container["name"], container.get("securityContext", {})
        if own.get("privileged"):
            found.append(f"{name}: privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name}: may gain privileges")
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            found.append(f"{name}: keeps capabilities")
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            found.append(f"{name}: adds capabilities")
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            found.append(f"{name}: may run as root")
        if own.get("runAsUser", whole.get("runAsUser", 1)) == 0:
            found.append(f"{name}: runs as root")
        profile = own.get("seccompProfile", whole.get("seccompProfile", {})).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            found.append(f"{name}: seccomp profile {profile}")
        found += [
            f"{name}: host port {port['hostPort']}" for port in container.get("ports", []) if port.get("hostPort")
        ]
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """Return the pod specs of all workloads by name."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in objects
        if one["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job")
    }


def require_hardened(objects: list[Object]) -> None:
    """Fail unless every pod keeps the standard, writes nowhere but into volumes, and says what memory it needs."""
    found = pods(objects)
    assert found
    for name, pod in found.items():
        assert faults(pod) == [], name
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, (name, container["name"])
        for container in pod["containers"]:
            assert container["resources"]["limits"]["memory"], name
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}, name


def require_valid(objects: list[Object]) -> None:
    """Fail unless every object of Kubernetes' own kinds fits its schema, unknown fields refused."""
    for one in objects:
        if one["apiVersion"].partition("/")[0] not in ("argoproj.io", "apiextensions.k8s.io"):
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def named(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of this kind and name."""
    found = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects {kind} {name}"
    return found[0]


def requested(objects: list[Object], what: str) -> float:
    """Return what all pods are promised together: `cpu` in cores, `memory` in Mi."""
    units = {"cpu": {"m": 0.001, "": 1.0}, "memory": {"Mi": 1.0, "Gi": 1024.0}}[what]
    total = 0.0
    for pod in pods(objects).values():
        for container in pod["containers"]:
            text = container["resources"]["requests"][what]
            unit = next(unit for unit in units if text.endswith(unit))
            total += float(text.removesuffix(unit)) * units[unit]
    return total
