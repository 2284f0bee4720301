"""The client of the Kubernetes API, against a small real HTTP double."""

from __future__ import annotations

import base64
import json
import stat
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci.cluster import kubeconfig
from ci.cluster.kube import Kube, Rejected
from ci.errors import Mistake, Unavailable
from tests.ci.cluster.kube_double import KubeDouble

Json = dict[str, Any]


@pytest.fixture
def double(tmp_path: Path) -> Generator[KubeDouble]:
    with KubeDouble(tmp_path) as found:
        yield found


@pytest.fixture
def kube(double: KubeDouble) -> Generator[Kube]:
    with Kube(double.kubeconfig) as found:
        yield found


def settings(name: str = "a", namespace: str = "one", **data: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "data": data,
    }


def namespace(name: str = "one") -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def test_what_is_applied_is_there_and_applied_again_changes_it(kube: Kube, double: KubeDouble) -> None:
    kube.apply([settings(size="1"), namespace()])  # the namespace goes first, whatever the order
    kube.apply([settings(size="2")])
    found = kube.get("v1/ConfigMap", "a", "one")
    assert found is not None and found["data"] == {"size": "2"}
    assert all(
        "fieldManager=modelwharf" in path and "force=true" in path for how, path in double.asked if how == "PATCH"
    )


def test_objects_of_a_kind_that_is_defined_in_the_same_go_are_applied(kube: Kube, double: KubeDouble) -> None:
    spec = {"group": "x.io", "names": {"kind": "Boat", "plural": "boats"}, "versions": [{"name": "v1"}]}
    definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": spec}
    boat = {"apiVersion": "x.io/v1", "kind": "Boat", "metadata": {"name": "b", "namespace": "one"}}
    kube.apply([boat, {**definition, "metadata": {"name": "boats.x.io"}}, namespace()])
    assert kube.get("x.io/v1/Boat", "b", "one") == boat


def test_apply_goes_on_until_the_namespace_is_there(kube: Kube, double: KubeDouble) -> None:
    later = threading.Timer(0.5, lambda: double.add(namespace()))
    later.start()
    kube.apply([settings()], timeout_s=10)
    later.join()
    with pytest.raises(Rejected, match='ConfigMap a in two: namespaces "two" not found'):
        kube.apply([settings(namespace="two")], timeout_s=0.5)


def test_apply_survives_an_api_server_that_restarts(kube: Kube, double: KubeDouble) -> None:
    kube.apply([namespace()])
    double.stop()
    later = threading.Timer(1.0, double.start)
    later.start()
    kube.apply([settings(size="1")], timeout_s=15)
    later.join()
    assert double.of("v1/ConfigMap", "a", "one")["data"] == {"size": "1"}


def test_apply_does_not_repeat_what_is_refused(kube: Kube, double: KubeDouble) -> None:
    kube.apply([namespace()])
    double.next_answers = [(403, "Forbidden", "configmaps is forbidden: User cannot")]
    begun = time.monotonic()
    with pytest.raises(Mistake, match="ConfigMap a in one: configmaps is forbidden"):
        kube.get("v1/ConfigMap", "a", "one")  # discovery is answered so, as any call would be
    double.next_answers = [(422, "Invalid", "data: no")]
    with pytest.raises(Rejected) as error:
        kube.apply([settings()])
    assert (error.value.status, error.value.reason) == (422, "Invalid")
    assert time.monotonic() - begun < 5


def test_a_busy_server_is_unavailable_and_apply_waits_for_it(kube: Kube, double: KubeDouble) -> None:
    kube.apply([namespace()])
    busy = (503, "ServiceUnavailable", "etcdserver: leader changed")
    double.next_answers = [busy]
    with pytest.raises(Unavailable, match=r"cannot serve now: etcdserver: leader changed"):
        kube.get("v1/Namespace", "one")
    double.next_answers = [busy, busy]
    kube.apply([settings()])
    assert kube.get("v1/ConfigMap", "a", "one")


def test_one_call_to_a_server_that_is_away_is_one_line(kube: Kube, double: KubeDouble) -> None:
    double.stop()
    begun = time.monotonic()
    with pytest.raises(Unavailable) as error:
        kube.list("v1/Pod")
    assert error.value.lines == [
        f"the cluster's API server (double, http://127.0.0.1:{double.port}) does not answer: Connection refused"
    ]
    assert "make cluster" in error.value.tip and not kube.ready() and time.monotonic() - begun < 3
    double.start()
    assert kube.ready() and kube.list("v1/Pod") == []


def test_connections_of_before_a_restart_do_no_harm(kube: Kube, double: KubeDouble) -> None:
    double.add(namespace())
    assert kube.get("v1/Namespace", "one")
    double.stop()
    double.start()
    assert kube.get("v1/Namespace", "one")


def test_waiting_survives_a_restart_and_ends(kube: Kube, double: KubeDouble) -> None:
    double.stop()
    later = threading.Timer(1.0, double.start)
    later.start()
    assert kube.wait(lambda: kube.ready() and kube.list("v1/Pod") == [], 15)
    later.join()
    assert kube.wait(lambda: kube.get("v1/Namespace", "none"), 0.5) is None
    double.stop()
    with pytest.raises(Unavailable):
        kube.wait(lambda: kube.list("v1/Pod"), 0.5)


def test_lists_are_whole_over_many_pages_and_selected(kube: Kube, double: KubeDouble) -> None:
    double.add(*(settings(f"n{number:04d}", "one" if number % 2 else "two") for number in range(1201)))
    found = kube.list("v1/ConfigMap")
    assert len({each["metadata"]["name"] for each in found}) == len(found) == 1201
    assert (found[0]["apiVersion"], found[0]["kind"]) == ("v1", "ConfigMap")
    assert len(kube.list("v1/ConfigMap", "one")) == 600
    assert [each["metadata"]["name"] for each in kube.list("v1/ConfigMap", labels="app=n0007")] == ["n0007"]


def test_a_list_that_got_too_old_is_taken_at_once(kube: Kube, double: KubeDouble) -> None:
    double.add(*(settings(f"n{number:04d}") for number in range(700)))
    kube.list("v1/Pod")  # so that the kinds are known
    answer = double.answer

    def expire(call: Any) -> None:
        if "continue=500" in call.path:
            double.next_answers = [(410, "Expired", "the provided continue parameter is too old")]
        answer(call)

    double.answer = expire
    assert len(kube.list("v1/ConfigMap")) == 700


def test_what_is_not_there(kube: Kube) -> None:
    assert kube.get("v1/ConfigMap", "a", "one") is None
    assert kube.get("x.io/v1/Boat", "b", "one") is None
    assert kube.delete("v1/ConfigMap", "a", "one") is False
    with pytest.raises(Rejected, match=r"the cluster does not know x\.io/v1/Boat"):
        kube.list("x.io/v1/Boat")
    with pytest.raises(Rejected, match='ConfigMap a in one: configmaps "a" not found'):
        kube.patch("v1/ConfigMap", "a", "one", {"data": {}})
    with pytest.raises(Mistake, match="ConfigMap a: a namespace is missing"):
        kube.get("v1/ConfigMap", "a")


def test_create_patch_and_delete(kube: Kube) -> None:
    kube.create(settings(size="1", colour="red"))
    with pytest.raises(Rejected) as error:
        kube.create(settings())
    assert (error.value.status, error.value.reason) == (409, "AlreadyExists")
    assert kube.patch("v1/ConfigMap", "a", "one", {"data": {"colour": None}})["data"] == {"size": "1"}
    assert kube.delete("v1/ConfigMap", "a", "one", wait_s=5) is True
    assert kube.get("v1/ConfigMap", "a", "one") is None


def test_logs_give_lines_and_say_why_there_are_none(kube: Kube, double: KubeDouble) -> None:
    double.logs = {("one", "p"): "first\nsecond\nthird\n", ("one", "p<"): "died\n"}
    assert list(kube.logs("p", "one")) == ["first", "second", "third"]
    assert list(kube.logs("p", "one", tail=1)) == ["third"]
    assert list(kube.logs("p", "one", previous=True)) == ["died"]
    with pytest.raises(Rejected, match="Pod q in one: container in pod q is waiting to start"):
        list(kube.logs("q", "one"))


def test_credentials_that_are_not_accepted(double: KubeDouble) -> None:
    with Kube(double.kubeconfig) as kube:
        double.token = "another"
        with pytest.raises(Rejected) as error:
            kube.list("v1/Pod")
    assert error.value.status == 401 and "credentials" in error.value.tip


# -- kubeconfig --------------------------------------------------------------------------------------------------------


def written(folder: Path, user: Json | None = None, cluster: Json | None = None) -> Path:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "here",
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(config))
    return path


def plugin(folder: Path, code: str, **more: object) -> Json:
    script = folder / "plugin"
    script.write_text(f"#!{sys.executable}\nimport json, os, sys\n{code}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script), **more}}


def test_a_credential_plugin_is_asked_for_the_token(tmp_path: Path) -> None:
    code = (
        "asked = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "token = ':'.join([os.environ['WHO'], sys.argv[1], asked['kind'], asked['spec']['cluster']['server']])\n"
        "print(json.dumps({'kind': 'ExecCredential', 'status': {'token': token}}))"
    )
    user = plugin(tmp_path, code, args=["get"], env=[{"name": "WHO", "value": "me"}], provideClusterInfo=True)
    assert kubeconfig.load(written(tmp_path, user)).token == "me:get:ExecCredential:https://127.0.0.1:1"


@pytest.mark.parametrize(
    ("code", "error", "line"),
    [
        ("sys.exit('no session: log in first')", Unavailable, "no session: log in first"),
        ("print('hello')", Mistake, "did not print an ExecCredential"),
        ("print(json.dumps({'status': ['token']}))", Mistake, "did not print an ExecCredential"),
    ],
)
def test_a_credential_plugin_that_fails(tmp_path: Path, code: str, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line):
        kubeconfig.load(written(tmp_path, plugin(tmp_path, code)))


def test_a_credential_plugin_with_a_path_stands_beside_the_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (theirs := tmp_path / "where-we-work").mkdir()
    plugin(theirs, "print(json.dumps({'status': {'token': 'of the folder that we work in'}}))")
    user = plugin(tmp_path, "print(json.dumps({'status': {'token': 'beside the kubeconfig'}}))")
    user["exec"]["command"] = "./plugin"
    monkeypatch.chdir(theirs)
    assert kubeconfig.load(written(tmp_path, user)).token == "beside the kubeconfig"


def test_a_credential_plugin_that_cannot_be_started(tmp_path: Path) -> None:
    user = plugin(tmp_path, "")
    (tmp_path / "plugin").chmod(0o644)
    with pytest.raises(Mistake, match=r"plugin: Permission denied$"):
        kubeconfig.load(written(tmp_path, user))


def test_a_token_that_has_ended_meanwhile_is_fetched_anew(tmp_path: Path, double: KubeDouble) -> None:
    token = tmp_path / "now"
    token.write_text(double.token)
    (tmp_path / "of-plugin").mkdir()
    code = f"print(json.dumps({{'status': {{'token': open({str(token)!r}).read()}}}}))"
    user = plugin(tmp_path / "of-plugin", code)
    path = written(tmp_path / "of-plugin", user, {"server": f"http://127.0.0.1:{double.port}"})
    with Kube(path) as kube:
        kube.apply([namespace(), settings(size="1")])
        double.token = "the next one"
        token.write_text(double.token)
        kube.apply([settings(size="2")])
        found = kube.get("v1/ConfigMap", "a", "one")
        assert found is not None and found["data"] == {"size": "2"}
        double.token = "nobody has this one"
        asked = len(double.asked)
        with pytest.raises(Rejected, match="Unauthorized"):
            kube.get("v1/ConfigMap", "a", "one")
        assert len(double.asked) == asked + 1  # the same token again would be refused again


def test_a_credential_plugin_that_is_not_installed(tmp_path: Path) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such", "installHint": "get it"}}
    with pytest.raises(Mistake, match="no-such is not installed") as error:
        kubeconfig.load(written(tmp_path, user))
    assert error.value.tip == "get it"


def test_a_token_file_is_found_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    assert kubeconfig.load(written(tmp_path, {"tokenFile": "token"})).token == "secret"


@pytest.mark.parametrize(
    ("user", "cluster", "line"),
    [
        ({"client-certificate": "gone.pem"}, {}, "gone.pem does not exist"),
        ({}, {"certificate-authority-data": "%%%"}, "certificate-authority-data: is not base64"),
        ({}, {"certificate-authority-data": base64.b64encode(b"no PEM").decode()}, "cannot be read"),
        ({"username": "u", "password": "p"}, {}, "Kubernetes has removed this way to log in"),
        ({"exec": {"apiVersion": "v1alpha1", "command": "x"}}, {}, "exec: apiVersion: must be one of"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used(tmp_path: Path, user: Json, cluster: Json, line: str) -> None:
    with pytest.raises(Mistake, match=line):
        kubeconfig.load(written(tmp_path, user, cluster))


def test_a_context_or_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"no context 'hear' \(did you mean 'here'\?\)"):
        kubeconfig.load(written(tmp_path), "hear")
    with pytest.raises(Mistake, match="No such file"):
        kubeconfig.load(tmp_path / "none")
    (tmp_path / "list").write_text(json.dumps([]))
    with pytest.raises(Mistake, match="is not a kubeconfig"):
        kubeconfig.load(tmp_path / "list")
