"""The static site: what it says of a model, from records made by hand. The e2e test opens it in a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ci.release import Release
from ci.status import Application
from ci.ui import ModelPage, VersionRow, _index, _model
from models.spec import load

ENVIRONMENTS = ["dev", "prod"]


@pytest.fixture
def page() -> ModelPage:
    release = Release(
        model="tumor",
        environment="dev",
        version=2,
        run="0" * 32,
        bento="tumor:" + "1" * 16,
        image="wharf.local/tumor@sha256:" + "1" * 64,
        artifact="sha256:" + "2" * 64,
        evidence="sha256:" + "3" * 64,
        data="sha256:" + "4" * 64,
        commit="5" * 40,
    )
    app = Application("tumor", "dev", "local", 2, "Synced", "Healthy", "http://127.0.0.1:1")
    rows = [
        VersionRow(n, f"{n:032x}", "5" * 40, {"roc_auc": 0.9 + n / 100}, f"reports/tumor/v{n}.html") for n in (2, 1)
    ]
    return ModelPage(load(Path(__file__).parents[2] / "models/tumor"), {"dev": release}, {"dev": app}, rows, {}, [])


def test_the_overview_shows_version_and_health(page: ModelPage) -> None:
    shown = _index([page], ENVIRONMENTS, "http://127.0.0.1:5000")
    assert "v2" in shown
    assert "Healthy" in shown
    assert "not measured" in shown


def test_out_of_sync_and_degraded_are_said(page: ModelPage) -> None:
    ill = replace(page.running["dev"], sync="OutOfSync", health="Degraded")
    shown = _index([replace(page, running={"dev": ill})], ENVIRONMENTS, "")
    assert "OutOfSync" in shown
    assert "Degraded" in shown


def test_a_model_page_lists_versions_with_reports_and_a_curve(page: ModelPage) -> None:
    shown = _model(page, ENVIRONMENTS, "http://127.0.0.1:5000")
    assert 'href="reports/tumor/v1.html"' in shown
    assert "http://127.0.0.1:5000/#/runs/" in shown
    assert "roc_auc by version" in shown


def test_one_version_draws_no_curve(page: ModelPage) -> None:
    assert "<svg" not in _model(replace(page, versions=page.versions[:1]), ENVIRONMENTS, "")


def test_drift_shows_what_moved_most(page: ModelPage) -> None:
    features = [
        {"feature": "mean_area", "method": "psi", "effect": 0.1, "threshold": 0.25},
        {"feature": "mean_radius", "method": "ks", "effect": 0.9, "threshold": 0.2},
        {"feature": "mean_texture", "method": "psi", "effect": None, "threshold": 0.25},
    ]
    report = {"version": 2, "rows": 500, "features": features, "alerts": ["mean_radius drifted"]}
    shown = _model(replace(page, drift={"dev": report}), ENVIRONMENTS, "")
    assert shown.index("mean_radius") < shown.index("mean_area") < shown.index("mean_texture")
    assert "1 alert<" in shown


def test_what_a_person_wrote_is_escaped(page: ModelPage) -> None:
    spec = page.spec.model_copy(update={"description": "<script>alert(1)</script>"})
    assert "<script>" not in _model(replace(page, spec=spec), ENVIRONMENTS, "")
