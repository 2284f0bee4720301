"""The rules that other tests lean on find what they are for."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.infra.platform import restricted

GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {"name": "one", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    ],
}


def test_a_pod_of_the_standard_has_no_faults():
    assert restricted.faults(GOOD) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pod: pod.update(hostNetwork=True), "hostNetwork is set"),
        (lambda pod: pod.update(volumes=[{"name": "v", "hostPath": {"path": "/"}}]), "volume v is a hostPath"),
        (lambda pod: pod.update(securityContext={}), "one: may run as root"),
        (lambda pod: pod["containers"][0].pop("securityContext"), "one: may gain privileges"),
        (lambda pod: pod["containers"][0]["securityContext"].update(runAsUser=0), "one: runs as root"),
        (lambda pod: pod["containers"][0].update(ports=[{"containerPort": 1, "hostPort": 2}]), "one: host port 2"),
    ],
)
def test_what_the_standard_forbids_is_found(change, said):
    pod = copy.deepcopy(GOOD)
    change(pod)
    assert said in restricted.faults(pod)
