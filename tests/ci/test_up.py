"""What `wharf up` decides and prints. The platform and the steps are doubles here, because each takes seconds; they
are tested in their own files, and all of them together in the end-to-end test."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from ci import up
from ci.cli import main
from ci.errors import Mistake, Refusal, Unavailable
from ci.local import platform
from ci.workspace import Workspace
from tests.registry_double import registry_double

ORDER = ("dev", "staging", "prod")


class Loop:
    """Plays the platform and the steps, and records in which order they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.releases: dict[tuple[str, str], SimpleNamespace] = {}
        self.faults: dict[str, Exception] = {}
        self.part = platform.Part("http://127.0.0.1:5001", True)
        monkeypatch.setattr(up.platform, "only_one_up", lambda _w: nullcontext())
        monkeypatch.setattr(up.platform, "start_mlflow", lambda _w: self.part)
        monkeypatch.setattr(up.platform, "wait_for_mlflow", lambda _w, _p: None)
        monkeypatch.setattr(up.platform, "mlflow_answers", lambda _w: True)
        monkeypatch.setattr(up.platform, "start_agent", lambda _w: self.part)
        monkeypatch.setattr(up.platform, "wait_healthy", self.wait)
        monkeypatch.setattr(up.status, "applications", lambda _w: [])
        monkeypatch.setattr(up, "_warm_up", lambda: None)
        self.orphans: set[tuple[str, str]] = set()
        monkeypatch.setattr(up, "_orphans", lambda _w, _names: self.orphans)
        monkeypatch.setattr("ci.withdraw.withdraw", self.withdraw)
        monkeypatch.setattr(up, "report_copy", lambda *_: "")
        monkeypatch.setattr(
            up, "_releases", lambda _w, name, order: {e: r for (n, e), r in self.releases.items() if n == name}
        )
        monkeypatch.setattr(
            "ci.local.origin.ensure", lambda w: (w.state / "origin.git").mkdir(parents=True, exist_ok=True)
        )
        monkeypatch.setattr("ci.local.origin.sync_user", lambda _w: "")
        monkeypatch.setattr("ci.ship.ship", lambda _w, name: self.release("ship", name, "dev"))
        monkeypatch.setattr("ci.promote.promote", lambda _w, name, to: self.release("promote", name, to))

    def release(self, what: str, name: str, environment: str) -> SimpleNamespace:
        self.calls.append(f"{what} {name} {environment}")
        if name in self.faults:
            raise self.faults[name]
        self.releases[name, environment] = SimpleNamespace(version=1)
        return SimpleNamespace(changed=True, version=1, environment=environment, summary="done")

    def withdraw(self, _w: Workspace, pairs: set[tuple[str, str]]) -> None:
        for pair in pairs:
            del self.releases[pair]

    def wait(self, _w: Workspace, name: str, environment: str, *_: object, **__: object) -> str:
        self.calls.append(f"wait {name} {environment}")
        if f"{name} {environment}" in self.faults:
            raise self.faults[f"{name} {environment}"]
        return "http://127.0.0.1:8400"


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Loop:
    monkeypatch.chdir(workspace.root)
    return Loop(monkeypatch)


def steps(loop: Loop) -> list[str]:
    return [call for call in loop.calls if not call.startswith("wait")]


def test_tumor_goes_all_the_way_and_the_others_train_while_it_starts(loop: Loop) -> None:
    assert main(["up"]) == 0
    assert loop.calls[:7] == [
        "ship tumor dev",
        "ship digits dev",
        "wait tumor dev",
        "promote tumor staging",
        "ship movies dev",
        "wait tumor staging",
        "promote tumor prod",
    ]
    assert set(loop.calls[7:]) == {"wait tumor dev", "wait tumor staging", "wait tumor prod"} | {
        "wait digits dev",
        "wait movies dev",
    }


def test_running_it_again_changes_nothing_and_says_so(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    main(["up"])
    assert "Nothing to change" not in capsys.readouterr().out
    loop.calls.clear()
    loop.part = platform.Part("http://127.0.0.1:5001", False)
    assert main(["up"]) == 0
    assert steps(loop) == []
    assert "Nothing to change" in capsys.readouterr().out


def test_what_was_cut_off_is_finished(loop: Loop) -> None:
    loop.releases["tumor", "dev"] = loop.releases["digits", "dev"] = SimpleNamespace(version=1)
    assert main(["up"]) == 0
    assert steps(loop) == ["promote tumor staging", "ship movies dev", "promote tumor prod"]


def test_releases_that_the_registry_does_not_know_are_made_anew(loop: Loop) -> None:
    pairs = [("tumor", "dev"), ("tumor", "staging"), ("tumor", "prod"), ("digits", "dev"), ("digits", "staging")]
    loop.releases |= {pair: SimpleNamespace(version=7) for pair in pairs}
    loop.orphans = {("tumor", "prod"), ("digits", "dev"), ("digits", "staging")}
    assert main(["up"]) == 0
    assert steps(loop) == ["promote tumor prod", "ship digits dev", "ship movies dev"]
    assert ("digits", "staging") not in loop.releases


@pytest.mark.parametrize(
    ("changed", "orphaned"),
    [({}, False), ({"run": "f" * 32}, True), ({"version": 9}, True)],
    ids=["ours", "run", "version"],
)
def test_a_release_of_another_registry_is_an_orphan(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], orphaned: bool
) -> None:
    with registry_double() as double:
        double.add("tumor", 1)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", double.url)
        monkeypatch.setattr("ci.build.find", lambda _w, _image: workspace.root)
        known = {"version": 1, "run": double.versions["tumor", 1]["wharf.run"], "image": "wharf.local/tumor"}
        monkeypatch.setattr(up, "_releases", lambda *_: {"dev": SimpleNamespace(**{**known, **changed})})
        assert up._orphans(workspace, ["tumor"]) == ({("tumor", "dev")} if orphaned else set())


def test_a_model_whose_data_cannot_be_had_is_left_out(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.faults["movies"] = Unavailable("the data of movies cannot be downloaded")
    assert main(["up"]) == 0
    out = capsys.readouterr().out
    assert "left out movies: the data of movies cannot be downloaded" in out
    assert "`wharf ship movies --data FILE`" in out
    assert ("tumor", "prod") in loop.releases and ("digits", "dev") in loop.releases


def test_a_refusal_stops_that_model_only_and_is_the_exit_code(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.faults["digits"] = Refusal("digits: metric.accuracy.min: 0.5 is under 0.9")
    assert main(["up"]) == 3
    out, err = capsys.readouterr()
    assert "metric.accuracy.min: 0.5 is under 0.9" in err
    assert "not done digits" in out
    assert "Nothing to change" not in out
    assert ("tumor", "prod") in loop.releases


def test_without_mlflow_nothing_is_taken_for_missing_data(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up.platform, "mlflow_answers", lambda _w: False)
    loop.faults["digits"] = Unavailable("MLflow does not answer")
    assert main(["up"]) == 4


def test_a_version_that_does_not_become_healthy_goes_no_further(loop: Loop) -> None:
    loop.faults["tumor staging"] = Unavailable("tumor in staging is not Healthy")
    assert main(["up"]) == 4
    assert ("tumor", "prod") not in loop.releases


def test_the_platform_alone(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--platform-only"]) == 0
    assert loop.calls == []
    assert "http://127.0.0.1:5001" in capsys.readouterr().out


def test_which_model_is_the_first() -> None:
    assert up.first_model(["digits", "tumor"]) == "tumor"
    assert up.first_model(["b", "c"]) == "b"
    assert up.first_model([]) is None
    assert up.first_model(["digits", "tumor"], "digits") == "digits"
    with pytest.raises(Mistake, match="--first: no model 'x'"):
        up.first_model(["digits"], "x")
