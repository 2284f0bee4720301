"""Kill -9 of what the cluster consists of."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil

from ci.cluster.node.layout import HERE
from tests.cluster.cluster import Cluster

ARGOCD = "argocd"


def kill_pod(cluster: Cluster, prefix: str) -> str:
    """Kill what runs in the pod of Argo CD whose name begins so; return how.

    On `node` the processes get SIGKILL. Elsewhere they are on another machine, or in a container's own tree: the pod is
    deleted without any grace, which kills them as well.
    """
    pods = [pod for pod in cluster.kube.list("v1/Pod", ARGOCD) if pod["metadata"]["name"].startswith(prefix)]
    assert pods, f"no pod of {prefix} runs in {ARGOCD}"
    for pod in pods:
        if cluster.access.provider == "node":
            pids = processes_of(pod["metadata"]["uid"])
            assert pids, f"pod {pod['metadata']['name']} has no process on this machine"
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        else:
            cluster.kube.delete("v1/Pod", pod["metadata"]["name"], ARGOCD)
    return prefix


def processes_of(uid: str) -> list[int]:
    """Return the processes in the containers of a pod, by its control group; not the one that holds its network."""
    marks = (f"pod{uid}", f"pod{uid.replace('-', '_')}")
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            groups = (entry / "cgroup").read_text()
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if any(mark in groups for mark in marks) and not words[0].endswith(b"pause"):
            found.append(int(entry.name))
    return found


def kill_part(name: str, wait_s: float = 60) -> float:
    """Kill a process of the node, wait until its supervisor has another one Ready, and return the seconds."""
    record = HERE.run / "parts" / f"{name}.json"
    before = json.loads(record.read_text())["pid"]
    assert Path(psutil.Process(before).cmdline()[0]).name == name
    os.kill(before, signal.SIGKILL)
    begun = time.monotonic()
    while time.monotonic() - begun < wait_s:
        part = json.loads((HERE.run / "supervisor-status.json").read_text())["parts"][name]
        if part["ready"] and part["pid"] not in (None, before):
            return time.monotonic() - begun
        time.sleep(0.2)
    raise AssertionError(f"{name} was not Ready again within {wait_s:g} seconds")
