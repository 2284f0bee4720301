"""Rendering: the same bytes for the same input, safe manifests, files that are replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci import cli, render
from ci.environments import Environment, load_all, parse
from ci.errors import Mistake
from ci.release import Release
from ci.rendering import manifests
from ci.rendering.manifest_text import dump
from ci.schemas import faults
from ci.workspace import Workspace, load_spec
from models.spec import ModelSpec
from tests.ci.gitops_tree import FIXTURES, ROOT, commit, make_tree, pin, put
from tests.registry_double import RegistryDouble, registry_double

HEX = "0123456789abcdef"


@pytest.fixture
def release() -> Release:
    digest = HEX * 4
    return Release(
        model="tumor",
        environment="dev",
        version=3,
        run="1" * 31 + "e",
        bento=f"tumor:{HEX}",
        image=f"wharf.local/tumor@sha256:{digest}",
        artifact=f"sha256:{digest}",
        evidence=f"sha256:{'e' * 64}",
        data=f"sha256:{'d' * 64}",
        commit="1" * 38 + "e5",  # YAML readers take this for a number unless it is quoted
    )


@pytest.fixture
def spec() -> ModelSpec:
    return load_spec(Workspace(ROOT), "tumor")


@pytest.fixture
def dev() -> Environment:
    return load_all(ROOT)[0]


def objects(release: Release, spec: ModelSpec, environment: Environment) -> dict[str, Any]:
    """Return what Kubernetes would read from the rendered files."""
    return {name: yaml.safe_load(text) for name, text in render.render_release(release, spec, environment).items()}


def other(spec: ModelSpec, **resources: Any) -> ModelSpec:
    return spec.model_copy(update={"resources": spec.resources.model_copy(update=resources)})


def test_what_is_rendered(release: Release, spec: ModelSpec, dev: Environment) -> None:
    found = objects(release, spec, dev)
    assert {name: manifest["kind"] for name, manifest in found.items()} == {
        "deployment.yaml": "Deployment",
        "horizontalpodautoscaler.yaml": "HorizontalPodAutoscaler",
        "networkpolicy.yaml": "NetworkPolicy",
        "poddisruptionbudget.yaml": "PodDisruptionBudget",
        "service.yaml": "Service",
        "serviceaccount.yaml": "ServiceAccount",
    }
    for name, manifest in found.items():
        assert faults(manifest) == [], name
        assert list(manifest)[:3] == ["apiVersion", "kind", "metadata"]
        assert (manifest["metadata"]["name"], manifest["metadata"]["namespace"]) == ("tumor", "diagnostics-dev")
        assert manifest["metadata"]["labels"]["app.kubernetes.io/name"] == "tumor"


def test_the_container_is_told_exactly_what_the_runtime_reads(
    release: Release, spec: ModelSpec, dev: Environment
) -> None:
    pod = objects(release, spec, dev)["deployment.yaml"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert {entry["name"]: entry["value"] for entry in container["env"]} == {
        "WHARF_MODEL": "tumor",
        "WHARF_VERSION": "3",
        "WHARF_ENVIRONMENT": "dev",
        "WHARF_ARTIFACT_SHA256": HEX * 4,
        "WHARF_PREDICTION_LOG": "/var/log/wharf",
        "WHARF_BENTO": f"tumor:{HEX}",
    }
    assert container["image"] == release.image
    assert container["ports"] == [{"name": "http", "containerPort": 3000, "protocol": "TCP"}]
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    ready = {"path": "/readyz", "port": "http"}
    assert probes == {"startup": ready, "readiness": ready, "liveness": {"path": "/livez", "port": "http"}}


def test_the_container_starts_the_launcher_that_is_in_the_bento(
    release: Release, spec: ModelSpec, dev: Environment
) -> None:
    container = objects(release, spec, dev)["deployment.yaml"]["spec"]["template"]["spec"]["containers"][0]
    python, program, *options = container["command"]
    source = Path(__file__).parents[2] / Path(program).relative_to("/home/bentoml/bento/src")
    assert (python, source.is_file()) == ("python", True)
    assert options == ["--host", "0.0.0.0", "--port", str(container["ports"][0]["containerPort"])]
    said = subprocess.run([sys.executable, str(source), "--help"], capture_output=True, text=True, check=True).stdout
    assert "--host" in said
    assert "--port" in said


def test_the_pod_is_restricted(release: Release, spec: ModelSpec, dev: Environment) -> None:
    pod = objects(release, spec, dev)["deployment.yaml"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # The root is read-only, so whatever the process writes has a volume, and every volume a limit.
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"tmp": "/tmp", "predictions": "/var/log/wharf"}
    assert {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]} == {
        "tmp": "256Mi",
        "predictions": dev.prediction_log,
    }
    assert container["resources"] == {
        "requests": {"cpu": "100m", "memory": "768Mi", "ephemeral-storage": "832Mi"},
        "limits": {"cpu": "1000m", "memory": "768Mi", "ephemeral-storage": "832Mi"},
    }


def test_a_pod_ends_only_after_its_requests(release: Release, spec: ModelSpec, dev: Environment) -> None:
    slow = spec.model_copy(update={"serving": spec.serving.model_copy(update={"timeout_s": 29.5})})
    pod = objects(release, slow, dev)["deployment.yaml"]["spec"]["template"]["spec"]
    wait = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= wait + 30 + 5


def test_annotations_lead_back(release: Release, spec: ModelSpec, dev: Environment) -> None:
    annotations = objects(release, spec, dev)["deployment.yaml"]["metadata"]["annotations"]
    names = ("commit", "run", "version", "data", "evidence", "artifact", "bento")
    assert annotations == {f"modelwharf.io/{name}": str(getattr(release, name)) for name in names}


def test_only_who_scales_owns_the_number_of_replicas(release: Release, spec: ModelSpec, dev: Environment) -> None:
    scaled = objects(release, spec, dev)
    assert "replicas" not in scaled["deployment.yaml"]["spec"]
    assert scaled["horizontalpodautoscaler.yaml"]["spec"]["minReplicas"] == 1
    text = (FIXTURES / "valid/environments/dev.yaml").read_text().replace("min: 1, max: 1", "min: 2, max: 2")
    fixed = objects(release, spec, parse(text, "gitops/environments/dev.yaml"))
    assert fixed["deployment.yaml"]["spec"]["replicas"] == 2
    assert "horizontalpodautoscaler.yaml" not in fixed


def test_gpu_brings_resources_and_toleration(release: Release, spec: ModelSpec, dev: Environment) -> None:
    assert "nvidia" not in str(objects(release, spec, dev))
    pod = objects(release, other(spec, gpu=2), dev)["deployment.yaml"]["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert (resources["requests"]["nvidia.com/gpu"], resources["limits"]["nvidia.com/gpu"]) == ("2", "2")
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_the_account_names_the_secret_of_the_registry_where_the_environment_does(
    release: Release, spec: ModelSpec, dev: Environment
) -> None:
    assert "imagePullSecrets" not in objects(release, spec, dev)["serviceaccount.yaml"]
    private = dev.model_copy(update={"pull_secret": "registry"})
    assert objects(release, spec, private)["serviceaccount.yaml"]["imagePullSecrets"] == [{"name": "registry"}]


def test_cpu_limit_is_a_multiple_of_the_request(release: Release, spec: ModelSpec, dev: Environment) -> None:
    deployment = objects(release, other(spec, cpu="3"), dev)["deployment.yaml"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "30000m"


def test_settings_of_the_environment_arrive(release: Release, spec: ModelSpec) -> None:
    prod = parse((FIXTURES / "valid/environments/prod.yaml").read_text(), "gitops/environments/prod.yaml")
    release = Release(**{**vars(release), "environment": "prod"})
    found = objects(release, spec, prod)
    pod = found["deployment.yaml"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "models"}
    assert pod["tolerations"] == [
        {"key": "dedicated", "operator": "Equal", "value": "models", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists"},
    ]
    policy = found["networkpolicy.yaml"]["spec"]
    assert policy["egress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"][0]["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert policy["ingress"][0]["from"][1]["namespaceSelector"]["matchExpressions"][0]["values"] == [
        "ingress",
        "observability",
        "shop",
    ]
    assert all(faults(manifest) == [] for manifest in found.values())


def test_a_promotion_changes_the_deployment_alone(release: Release, spec: ModelSpec, dev: Environment) -> None:
    old = render.render_release(release, spec, dev)
    changed = {"version": 4, "run": "2" * 32, "image": release.image.replace("0", "f"), "commit": "d" * 40}
    new = render.render_release(Release(**{**vars(release), **changed}), spec, dev)
    assert [name for name in old if old[name] != new[name]] == ["deployment.yaml"]


def test_what_does_not_belong_together_is_refused(release: Release, spec: ModelSpec) -> None:
    with pytest.raises(Mistake, match="belongs to neither model"):
        render.render_release(release, spec, load_all(ROOT)[1])


def test_every_process_renders_the_same_bytes(release: Release, spec: ModelSpec, dev: Environment) -> None:
    code = (
        "import sys, pickle; from ci.render import render_release;"
        "sys.stdout.write(repr(render_release(*pickle.loads(sys.stdin.buffer.read()))))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps((release, spec, dev)),
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {repr(render.render_release(release, spec, dev)).encode()}


def _random_value(rng: random.Random, depth: int) -> Any:
    words = ["yes", "On", "null", "~", "", " x", "x ", "a: b", "#c", "-", "- a", "1e5", "0x1f", "12:30:45", "1_000"]
    words += ["=", "é", "\u2028", "a\nb", "\t", '"', "'", "{x}", "[", "*a", "&a", "!t", "%", "@", "`", "2026-11-21"]
    words += ["plain", "a/b-c.d", "250m", "64Mi", "sha256:0", "x:", "a#b", "a #b", "nan", ".inf", "\x00", "\x7f", "?"]
    kind = rng.randrange(7 if depth else 5)
    if kind < 2:
        return rng.choice(words)
    if kind == 5:
        return {rng.choice(words): _random_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    if kind == 6:
        return [
            item
            for item in (_random_value(rng, depth - 1) for _ in range(rng.randrange(4)))
            if not isinstance(item, list)
        ]
    return rng.choice([0, -7, 2.5, True, False, None])


def test_text_reads_back_as_what_was_written() -> None:
    rng = random.Random(7)
    for _ in range(400):
        value = {f"k{index}": _random_value(rng, 3) for index in range(4)}
        assert yaml.safe_load(dump(value)) == value


@pytest.mark.parametrize("word", ["yes", "off", "Null", "1e5", "12345e67", "0x1f", "12:30", "1_000", "007", ".5", "y"])
def test_text_that_a_reader_might_take_for_something_else_is_quoted(word: str) -> None:
    assert dump({"a": word}) == f'a: "{word}"\n'


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(TypeError, match="set cannot be in a manifest"):
        dump({"a": {1, 2}})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="a list directly in a list"):
        dump({"a": [[1]]})


@pytest.fixture
def tree(tmp_path: Path, registry: RegistryDouble) -> Path:
    root = make_tree(tmp_path / "repository", "tumor", "wine")
    put(root, pin(registry.add("tumor", 1), "dev"), pin(registry.add("wine", 1), "dev"))
    return root


@pytest.fixture
def registry() -> Generator[RegistryDouble]:
    """Only its facts are used here; nobody calls it."""
    with registry_double() as double:
        yield double


def wharf(root: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.chdir(root)
    return cli.main(list(words))


def test_render_says_when_there_is_nothing_to_change(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wharf(tree, monkeypatch, "render") == 0
    assert capsys.readouterr().out == "nothing to change: 12 files in gitops/ are up to date\n"


def test_render_writes_what_changed_and_removes_what_is_gone(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree / "gitops/rendered/dev"
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.yaml")}
    (folder / "tumor/service.yaml").write_text("kind: Service\n")
    (folder / "tumor/extra.yaml").write_text("kind: Secret\n")
    (tree / "gitops/releases/dev/wine.yaml").unlink()
    assert wharf(tree, monkeypatch, "render", "--check") == 3
    assert "8 files differ from a fresh render" in capsys.readouterr().err
    assert (folder / "wine").is_dir()
    assert wharf(tree, monkeypatch, "render", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["written"] == ["gitops/rendered/dev/tumor/service.yaml"]
    assert len(said["removed"]) == 7
    assert not (folder / "wine").exists()
    for path in folder.rglob("*.yaml"):
        assert (path.stat().st_mtime_ns == kept[path]) == (path.name != "service.yaml")
    assert wharf(tree, monkeypatch, "render", "--check") == 0


def test_render_of_a_change_looks_at_nothing_else(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree / "gitops/rendered/dev"
    commit(tree, "Release")
    assert wharf(tree, monkeypatch, "render", "--changed", "HEAD") == 0
    assert capsys.readouterr().out == "nothing to change: 0 files in gitops/ are up to date\n"
    spec = tree / "models/wine/model.yaml"
    spec.write_text(spec.read_text() + "resources: {cpu: 500m}\n")
    (folder / "wine/extra.yaml").write_text("kind: Secret\n")
    assert wharf(tree, monkeypatch, "render", "--changed", "HEAD") == 0
    assert capsys.readouterr().out == (
        "write   gitops/rendered/dev/wine/deployment.yaml\nremove  gitops/rendered/dev/wine/extra.yaml\n"
    )
    (tree / "gitops/releases/dev/wine.yaml").unlink()
    assert wharf(tree, monkeypatch, "render", "--changed", "HEAD") == 0
    assert not (folder / "wine").exists()
    assert wharf(tree, monkeypatch, "render", "--check") == 0
    assert wharf(tree, monkeypatch, "render", "--changed", "nowhere") == 2


def test_a_broken_release_is_named_and_nothing_is_written(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "gitops/releases/dev/tumor.yaml").write_text("model: tumor\n")
    (tree / "gitops/releases/dev/wine.yaml").unlink()
    assert wharf(tree, monkeypatch, "render") == 2
    assert "ERROR  gitops/releases/dev/tumor.yaml: run: is missing" in capsys.readouterr().err
    assert (tree / "gitops/rendered/dev/wine/service.yaml").exists()


def test_a_full_disk_leaves_the_old_file(tree: Path) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses the write in the same place."""
    path = tree / "gitops/rendered/dev/tumor/deployment.yaml"
    old = "# old\n" * 10
    path.write_text(old)
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from pathlib import Path; from ci import render;"
        f"root = Path({str(tree)!r}); render.write(root, render.render_all(root))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert path.read_text() == old
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


def test_render_imports_nothing_heavy() -> None:
    code = "import sys, ci.render, ci.validate; print(sorted({'mlflow','sklearn','pandas','numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_manifests_are_plain_data(release: Release, spec: ModelSpec, dev: Environment) -> None:
    """What is checked against the schemas is the object; the text must say the same."""
    for name, manifest in manifests.all_of(release, spec, dev).items():
        assert yaml.safe_load(dump(manifest)) == manifest, name
