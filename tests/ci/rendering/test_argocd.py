"""What Argo CD is bootstrapped from: what render writes, and one fault for each rule."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci import cli
from ci.environments import Replicas, load_all
from ci.errors import Mistake
from ci.render import compare, render_all, write
from ci.rendering import argocd, manifests
from ci.shell import git
from ci.validate import validate
from ci.validation.bootstrap import rules
from ci.workspace import Workspace, load_spec
from tests.ci.gitops_tree import FIXTURES, ROOT, add_model, commit, expected, make_tree, pin, release_all
from tests.registry_double import RegistryDouble, registry_double

URL = "https://git.example.com/team/models.git"
SETTINGS = argocd.Settings(repository=URL)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Generator[RegistryDouble]:
    with registry_double() as double:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", double.url)
        yield double


@pytest.fixture
def tree(tmp_path: Path, registry: RegistryDouble) -> Path:
    """Two models of one team, one of them released in dev, and what Argo CD needs."""
    root = make_tree(tmp_path / "repository", "tumor", "wine")
    (root / argocd.SETTINGS).write_text(f"repository: {URL}\n")
    write(root, render_all(root))
    commit(root, "Settings of Argo CD")
    release_all(root, pin(registry.add("tumor", 1), "dev"))
    return root


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def first(root: Path, path: str) -> dict[str, Any]:
    return documents((root / path).read_text())[0]


def edit(root: Path, path: str, old: str, new: str) -> None:
    text = (root / path).read_text()
    assert old in text
    (root / path).write_text(text.replace(old, new))


def test_a_good_tree(tree: Path) -> None:
    assert validate(tree) == []
    assert argocd.there(tree) == [
        *[f"gitops/appsets/{name}.yaml" for name in ("dev", "prod", "staging")],
        *[f"gitops/projects/{name}.yaml" for name in ("default", "dev", "prod", "staging")],
        "gitops/root.yaml",
    ]


def test_this_repository_is_as_a_fresh_render_gives_it() -> None:
    fresh = argocd.render(ROOT)
    assert {path: (ROOT / path).read_text() for path in argocd.there(ROOT)} == fresh


def test_the_address_stands_wherever_it_is_needed(tree: Path) -> None:
    fresh = argocd.render(tree)
    named = [value for text in fresh.values() for value in _values(documents(text), "repoURL")]
    assert set(named) == {URL}
    assert len(named) == 1 + 2 * 3  # root, and for each environment the generator and the template
    for name in ("modelwharf", "dev", "staging", "prod"):
        path = argocd.ROOT if name == "modelwharf" else f"gitops/projects/{name}.yaml"
        assert first(tree, path)["spec"]["sourceRepos"] == [URL]


def _values(value: object, key: str) -> list[object]:
    if isinstance(value, dict):
        found = [value[key]] if key in value else []
        return found + [one for entry in value.values() for one in _values(entry, key)]
    return [one for entry in value for one in _values(entry, key)] if isinstance(value, list) else []


def test_a_project_allows_the_namespaces_of_all_models_and_no_other(tree: Path) -> None:
    add_model(tree, "grape")
    edit(tree, "models/grape/model.yaml", "team: diagnostics", "team: cellar")
    write(tree, render_all(tree))
    for environment in ("dev", "staging", "prod"):
        destinations = first(tree, f"gitops/projects/{environment}.yaml")["spec"]["destinations"]
        assert {entry["server"] for entry in destinations} == {"https://kubernetes.default.svc"}
        assert [entry["namespace"] for entry in destinations] == [
            "",
            f"cellar-{environment}",
            f"diagnostics-{environment}",
        ]


@pytest.mark.parametrize("scales", [True, False])
def test_a_project_allows_the_kinds_that_are_rendered_and_no_other(
    tree: Path, registry: RegistryDouble, scales: bool
) -> None:
    environment = load_all(tree)[0].model_copy(update={"replicas": Replicas(min=1, max=2 if scales else 1)})
    objects = manifests.all_of(pin(registry.add("tumor", 1), "dev"), load_spec(Workspace(tree), "tumor"), environment)
    kinds = {(str(one["apiVersion"]).rpartition("/")[0], one["kind"]) for one in objects.values()}
    assert kinds == set(argocd.KINDS) - (set() if scales else {("autoscaling", "HorizontalPodAutoscaler")})


def test_an_application_set_finds_the_folders_that_render_writes(tree: Path) -> None:
    spec = first(tree, "gitops/appsets/dev.yaml")["spec"]
    (directory,) = spec["generators"][0]["git"]["directories"]
    assert [str(path.relative_to(tree)) for path in tree.glob(directory["path"])] == ["gitops/rendered/dev/tumor"]
    template = spec["template"]
    assert template["metadata"]["name"] == "{{ .path.basename }}-dev"
    assert template["metadata"]["labels"]["modelwharf.io/model"] == "{{ .path.basename }}"
    assert template["spec"]["project"] == "dev"
    assert "namespace" not in template["spec"]["destination"]  # the manifests name it


def test_root_takes_the_projects_and_application_sets_alone(tree: Path) -> None:
    project, application = documents((tree / argocd.ROOT).read_text())
    assert project["metadata"]["name"] == application["spec"]["project"] == "modelwharf"
    source = application["spec"]["source"]
    assert (source["path"], source["directory"]["include"]) == ("gitops", "{projects/*.yaml,appsets/*.yaml}")
    written = {
        (one["apiVersion"].partition("/")[0], one["kind"])
        for path in argocd.there(tree)
        for one in [first(tree, path)]
        if path != argocd.ROOT
    }
    assert written == {(one["group"], one["kind"]) for one in project["spec"]["namespaceResourceWhitelist"]}
    assert "finalizers" not in application["metadata"]  # deleting it deletes nothing that runs


def test_what_outlives_a_lost_file(tree: Path) -> None:
    options = "argocd.argoproj.io/sync-options"
    for name in ("dev", "staging", "prod"):
        metadata = first(tree, f"gitops/appsets/{name}.yaml")["metadata"]
        assert metadata["annotations"][options] == "Prune=false,Delete=false"
    assert first(tree, "gitops/projects/default.yaml")["metadata"]["annotations"][options] == "Prune=false"


@pytest.mark.parametrize(
    "repository",
    ["git@git.example.com:team/models.git", "ssh://git@git.example.com:2222/models", "file:///srv/origin.git", URL],
)
def test_addresses(repository: str) -> None:
    assert argocd.parse(f"repository: {repository}\n").repository == repository


@pytest.mark.parametrize(
    "repository",
    [
        "https://git.example.com/*",
        "https://a:b@git.example.com/x",
        "../origin.git",
        "git://x/y",
        "https://",
        "!https://x/y",
    ],
)
def test_no_addresses(repository: str) -> None:
    with pytest.raises(Mistake, match=r"gitops/argocd.yaml: repository: '.*' is no address of a git repository"):
        argocd.parse(f"repository: '{repository}'\n")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("branch: main\n", "gitops/argocd.yaml: repository: is missing"),
        (f"repository: {URL}\nbrunch: main\n", "gitops/argocd.yaml: brunch: unknown key (did you mean 'branch'?)"),
        (f"repository: {URL}\nnamespace: Argo\n", "gitops/argocd.yaml: namespace: "),
        (f"repository: {URL}\nserver: '*'\n", "gitops/argocd.yaml: server: "),
        ("repository: [", "gitops/argocd.yaml:"),
    ],
)
def test_broken_settings(tree: Path, text: str, fault: str) -> None:
    (tree / argocd.SETTINGS).write_text(text)
    assert any(line.startswith(fault) for line in validate(tree)), validate(tree)
    with pytest.raises(Mistake):
        render_all(tree)


@pytest.mark.parametrize("name", ["default", "modelwharf"])
def test_an_environment_with_the_name_of_a_project_of_argo_cd(tree: Path, name: str) -> None:
    (tree / "gitops/environments/prod.yaml").rename(tree / f"gitops/environments/{name}.yaml")
    edit(tree, f"gitops/environments/{name}.yaml", "name: prod", f"name: {name}")
    assert f"gitops/environments/{name}.yaml: name: '{name}' is a project of Argo CD's own" in validate(tree)


@pytest.mark.parametrize("path", sorted((FIXTURES / "invalid/argocd").glob("*.yaml")), ids=lambda path: path.stem)
def test_rules(tree: Path, path: Path) -> None:
    """One fault a file; the rest of each file is as render writes it."""
    (document,) = documents(path.read_text())
    assert rules(document, SETTINGS) == [expected(path)]
    # And the whole check says it, with the file in front.
    folder = {"Application": "gitops/root.yaml", "ApplicationSet": "gitops/appsets/dev.yaml"}
    where = folder.get(document["kind"], f"gitops/projects/{document['metadata']['name']}.yaml")
    (tree / where).write_text(path.read_text())
    assert f"{where}: {expected(path)}" in validate(tree)


def test_what_render_writes_breaks_no_rule(tree: Path) -> None:
    kinds: set[str] = set()
    for text in argocd.render(tree).values():
        for document in documents(text):
            kinds.add(document["kind"])
            assert rules(document, SETTINGS) == []
    assert kinds == {"Application", "ApplicationSet", "AppProject"}


@pytest.mark.parametrize(
    ("path", "old", "new", "fault"),
    [
        (
            "gitops/root.yaml",
            "revisionHistoryLimit",
            "revisionHistoryLimits",
            "spec.revisionHistoryLimits: unknown field",
        ),
        ("gitops/projects/dev.yaml", "sourceRepos", "sourceRepo", "spec.sourceRepo: unknown field"),
        ("gitops/appsets/dev.yaml", "goTemplateOptions", "goTemplateOption", "spec.goTemplateOption: unknown field"),
        (
            "gitops/appsets/dev.yaml",
            "selfHeal",
            "selfheal",
            "spec.template.spec.syncPolicy.automated.selfheal: unknown",
        ),
    ],
)
def test_argo_cds_own_schemas(tree: Path, path: str, old: str, new: str, fault: str) -> None:
    edit(tree, path, old, new)
    assert any(line.startswith(f"{path}: {fault}") for line in validate(tree)), validate(tree)


@pytest.mark.parametrize(
    "path", ["gitops/root.yaml", "gitops/projects/default.yaml", "gitops/projects/prod.yaml", "gitops/appsets/dev.yaml"]
)
def test_a_missing_file(tree: Path, path: str) -> None:
    (tree / path).unlink()
    wanted = [f"{path}: is missing (run `wharf render` and commit what it writes)"]
    assert validate(tree) == wanted
    assert validate(tree, changed="HEAD") == wanted


def test_an_environment_without_its_project_and_application_set(tree: Path) -> None:
    edit(tree, "gitops/environments/prod.yaml", "name: prod", "name: live")
    (tree / "gitops/environments/prod.yaml").rename(tree / "gitops/environments/live.yaml")
    faults = validate(tree, changed="HEAD")
    assert {fault.partition(" (")[0] for fault in faults} == {
        "gitops/projects/live.yaml: is missing",
        "gitops/appsets/live.yaml: is missing",
        "gitops/projects/prod.yaml: is not part of a fresh render",
        "gitops/appsets/prod.yaml: is not part of a fresh render",
    }
    changes = write(tree, render_all(tree))
    assert changes.written == ["gitops/appsets/live.yaml", "gitops/projects/live.yaml"]
    assert changes.removed == ["gitops/appsets/prod.yaml", "gitops/projects/prod.yaml"]
    assert validate(tree) == []


def test_a_file_that_only_render_may_write(tree: Path) -> None:
    (tree / "gitops/projects/extra.yaml").write_bytes(b"\xff")
    edit(tree, "gitops/projects/dev.yaml", "description: ", "description: x")
    faults = validate(tree, changed="HEAD")
    assert "gitops/projects/extra.yaml: is not UTF-8 text" in faults
    assert (
        "gitops/projects/extra.yaml: is not part of a fresh render (run `wharf render` and commit what it writes)"
        in faults
    )
    assert any(fault.startswith("gitops/projects/dev.yaml: line ") for fault in faults)


def test_a_new_team_needs_a_render_and_a_new_model_of_a_known_team_does_not(tree: Path) -> None:
    add_model(tree, "grape")
    assert validate(tree, changed="HEAD") == []
    edit(tree, "models/grape/model.yaml", "team: diagnostics", "team: cellar")
    faults = validate(tree, changed="HEAD")
    assert [fault.partition(":")[0] for fault in faults] == [
        f"gitops/projects/{x}.yaml" for x in ("dev", "prod", "staging")
    ]
    assert "cellar-dev" in faults[0]
    write(tree, render_all(tree))
    assert validate(tree, changed="HEAD") == []


def test_render_of_what_changed(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tree)
    edit(tree, argocd.SETTINGS, "models.git", "other.git")
    assert cli.main(["render", "--check", "--changed", "HEAD"]) == 3
    assert "gitops/: 7 files differ from a fresh render" in capsys.readouterr().err
    assert cli.main(["render", "--changed", "HEAD"]) == 0
    assert validate(tree) == []
    assert cli.main(["render", "--check"]) == 0
    # What has nothing to do with it leaves it alone.
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "Other address")
    (tree / "gitops/root.yaml").write_text("kind: Application\n")
    git(tree, "commit", "--quiet", "--all", "--message", "Break")
    edit(tree, "models/wine/data.py", "...", "return None")
    assert cli.main(["render", "--check", "--changed", "HEAD"]) == 0
    assert cli.main(["render", "--check"]) == 3


def test_without_settings_nothing_is_written_and_what_is_there_is_refused(tree: Path) -> None:
    (tree / argocd.SETTINGS).unlink()
    assert argocd.render(tree) == {}
    assert compare(tree, render_all(tree)).removed == []
    faults = validate(tree, changed="HEAD")
    assert len(faults) == 8
    assert faults[0].startswith("gitops/appsets/dev.yaml: there is no gitops/argocd.yaml that it could be written from")
    for path in argocd.there(tree):
        (tree / path).unlink()
    assert validate(tree) == []


def test_a_promotion_changes_none_of_it(tree: Path, registry: RegistryDouble) -> None:
    before = argocd.render(tree)
    release_all(tree, pin(registry.add("wine", 1), "dev"), pin(registry.add("tumor", 1), "staging"))
    assert argocd.render(tree) == before
    assert validate(tree) == []
