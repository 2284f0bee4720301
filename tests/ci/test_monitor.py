"""`wharf monitor` end to end on written logs, without MLflow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ci import cli
from ci.errors import Mistake, Refusal, Unavailable
from ci.label import Given, label
from ci.live.measure import quality
from ci.live.prediction_log import read
from ci.live.reference import schema_of
from ci.monitor import monitor, parse_since, released
from ci.workspace import Workspace, load_spec
from models.quality import rates
from tests.ci.live_traffic import entry, healthy, reference, refused, release, write_log

NOW = time.time()
TODAY = time.strftime("%Y-%m-%d", time.gmtime(NOW))


@pytest.fixture
def watched(workspace: Workspace) -> Workspace:
    """A workspace with tumor version 1 in dev and its reference."""
    release(workspace)
    reference(workspace, healthy(400, seed=1))
    return workspace


def log_now(workspace: Workspace, values: Any, **changes: Any) -> list[dict[str, Any]]:
    """Log rows that were answered between the release and now."""
    parts = [values[i : i + 5].tolist() for i in range(0, len(values), 5)]
    lines = [entry(number, rows, time.time(), **changes) for number, rows in enumerate(parts)]
    write_log(workspace, lines, time.strftime("%Y-%m-%d", time.gmtime()))
    return lines


def wharf(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.chdir(workspace.root)
    return cli.main(list(words))


def test_unchanged_traffic_is_no_alert(watched: Workspace) -> None:
    log_now(watched, healthy(400, seed=2))
    report = monitor(watched, "tumor")
    assert (report.environment, report.version, report.rows, report.alerts) == ("dev", 1, 400, [])
    assert len(report.features) == 30
    assert all(found.effect is not None for found in report.features)
    assert [found.feature for found in report.predictions] == ["prediction", "score"]


def test_a_shift_is_found_with_feature_effect_and_threshold(
    watched: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = healthy(400, seed=2)
    values[:, 0] *= 2
    values[:, 1] *= 2
    log_now(watched, values)
    assert wharf(watched, monkeypatch, "monitor", "tumor") == 3
    shown = capsys.readouterr()
    assert "tumor/dev: mean_radius: ks " in shown.err and "is above 0.2 (drift)" in shown.err
    assert "tumor/dev: mean_texture: psi " in shown.err and "is above 0.25 (drift)" in shown.err
    assert shown.err.count("ERROR") == 2
    assert "wharf retrain tumor --env dev" in shown.err


def test_files_that_are_written(watched: Workspace) -> None:
    log_now(watched, healthy(400, seed=2) * 3)
    report = monitor(watched, "tumor")
    folder = watched.state / "reports" / "tumor" / "dev"
    written = json.loads((folder / "latest.json").read_text())
    assert written == json.loads(json.dumps(asdict(report)))
    page = (watched.root / report.path).read_text()
    assert page == (folder / "latest.html").read_text()
    assert "mean_radius" in page and "<svg" in page and "http" not in page.replace("http://www.w3.org", "")
    metrics = (folder / "metrics.prom").read_text()
    assert 'wharf_drift_effect{model="tumor",environment="dev",feature="mean_radius",method="ks"} ' in metrics
    assert 'wharf_drift_threshold{model="tumor",environment="dev",feature="mean_texture",method="psi"} 0.25' in metrics
    assert 'wharf_error_rate{model="tumor",environment="dev"} 0.0' in metrics
    assert f'wharf_alerts{{model="tumor",environment="dev"}} {float(len(report.alerts))}' in metrics
    samples = [line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#")]
    assert all(name.startswith("wharf_") and name.endswith("}") for name, _ in samples)
    assert all(np.isfinite(float(value)) for _, value in samples)


def test_without_traffic_it_says_that_nothing_is_judged(
    watched: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wharf(watched, monkeypatch, "monitor", "tumor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["notes"] == ["not judged: no prediction was logged in the window"]
    assert {found["effect"] for found in report["features"]} == {None}


def test_few_rows_are_not_judged(watched: Workspace) -> None:
    log_now(watched, healthy(50, seed=2) * 2)
    report = monitor(watched, "tumor")
    assert not report.alerts
    assert report.notes == ["30 of 30 features not judged: 50 values in the window, 200 are needed (drift.min_rows)"]


def test_only_the_released_version_since_its_release_counts(watched: Workspace) -> None:
    log_now(watched, healthy(300, seed=3) * 4, version=2)
    write_log(watched, [entry(i, healthy(1).tolist(), NOW - 5000) for i in range(10)], TODAY)
    log_now(watched, healthy(300, seed=2))
    assert monitor(watched, "tumor").rows == 300
    assert monitor(watched, "tumor", since=NOW - 6000).rows == 310
    cut = monitor(watched, "tumor", max_rows=200)
    assert (cut.rows, cut.notes[0]) == (200, "the window holds more rows; the newest 200 were read (--rows 200)")


def test_data_quality(watched: Workspace) -> None:
    values = healthy(400, seed=2)
    values[:40, 3] = np.nan
    values[:8, 4] = 9.0
    values[:3, 5] = -1.0
    write_log(watched, [entry(0, json.loads(json.dumps(values.tolist()).replace("NaN", "null")), time.time())], TODAY)
    report = monitor(watched, "tumor")
    found = {(rate.name, rate.check): (rate.value, rate.beyond) for rate in report.quality}
    assert found["mean_area", "missing"] == (0.1, True)
    assert found["mean_smoothness", "out of range"] == (0.02, True)
    assert found["mean_compactness", "out of range"] == (0.0075, False)
    assert "tumor/dev: mean_area: missing 10.00% is above 0.00%" in report.alerts


def test_quality_follows_the_rules_of_the_contract(watched: Workspace) -> None:
    """The shares must be those of models.quality, which judges training data."""
    spec = load_spec(watched, "tumor")
    values = healthy(500, seed=9) * np.random.default_rng(1).choice([1, 30, -1], (500, 30), p=[0.9, 0.08, 0.02])
    values = values.astype(np.float32).astype(np.float64)
    log_now(watched, values)
    log = read(watched.predictions("dev", "tumor"), schema_of(spec))
    expected = rates(pd.DataFrame(values, columns=spec.data.names()), spec)
    found = {rate.name: rate.value for rate in quality(spec, log)}
    assert found == pytest.approx({k: v.out_of_range for k, v in expected.items() if v.out_of_range > 0})
    assert len(found) > 5


def test_errors_and_refusals(watched: Workspace) -> None:
    log_now(watched, healthy(500, seed=2))
    write_log(watched, [refused(i, time.time()) for i in range(20)], TODAY)
    write_log(watched, [refused(i, time.time(), 500, "model failed") for i in range(5)], TODAY)
    report = monitor(watched, "tumor")
    assert (report.service.requests, report.service.refused, report.service.failed) == (125, 20, 5)
    assert report.service.error_rate == pytest.approx(0.04)
    assert "tumor/dev: requests: failed 4.00% is above 1.00%" in report.alerts
    assert "tumor/dev: requests: refused 16.00% is above 5.00%" in report.alerts
    assert report.service.errors == {"rows.0.mean_radius: is missing": 20, "model failed": 5}


def test_prediction_drift(watched: Workspace) -> None:
    log_now(watched, healthy(400, seed=2), predictions=["malignant"] * 5)
    report = monitor(watched, "tumor")
    assert len(report.alerts) == 1 and "tumor/dev: prediction: psi" in report.alerts[0]


def test_performance_of_labelled_rows(watched: Workspace) -> None:
    lines = log_now(watched, healthy(400, seed=2))
    names = ["malignant", "benign"]  # the opposite of what was predicted
    given = [Given(one["id"], row, names[(i + row) % 2], "") for i, one in enumerate(lines) for row in range(5)]
    label(watched, "tumor", "dev", given[:150])
    report = monitor(watched, "tumor")
    assert report.performance.labelled_rows == 150
    assert report.performance.metrics["accuracy"] == 0.0
    assert report.performance.metrics["roc_auc"] == 0.0
    assert "tumor/dev: roc_auc: 0.0000 is below 0.95 on 150 labelled rows" in report.alerts


def test_a_request_that_was_sent_again_is_said(watched: Workspace) -> None:
    values = healthy(10, seed=2)
    log_now(watched, values)
    log_now(watched, values)  # the same two ids
    label(watched, "tumor", "dev", [Given("r0", row, "benign", "") for row in range(5)])
    report = monitor(watched, "tumor")
    assert (report.rows, report.performance.labelled_rows) == (20, 5)
    assert "2 requests came again under the same id; labels count for the newest answer of an id" in report.notes


def test_few_labels_are_shown_and_not_alerted(watched: Workspace) -> None:
    lines = log_now(watched, healthy(400, seed=2))
    label(watched, "tumor", "dev", [Given(one["id"], 0, "malignant", "") for one in lines[::2]])
    report = monitor(watched, "tumor")
    assert (report.performance.labelled_rows, report.performance.metrics["roc_auc"]) == (40, None)
    assert report.alerts == []


def test_the_most_advanced_release_is_the_default(watched: Workspace) -> None:
    release(watched, environment="staging", version=3)
    assert released(watched, "tumor")[0].environment == "staging"
    assert released(watched, "tumor", "dev")[0].version == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tumor", "--env", "prod"], "tumor has no release in prod"),
        (["tumor", "--env", "stagin"], "no environment 'stagin' (did you mean 'staging'?)"),
        (["tumour"], "no model 'tumour'"),
        (["tumor", "--since", "yesterday"], "--since: 'yesterday' is neither a span"),
        (["tumor", "--rows", "0"], "--rows: must be 1 or more, not 0"),
    ],
)
def test_mistakes(
    watched: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    line: str,
) -> None:
    assert wharf(watched, monkeypatch, "monitor", *words) == 2
    assert line in capsys.readouterr().err


def test_a_model_that_was_never_released(workspace: Workspace) -> None:
    with pytest.raises(Mistake, match="tumor has no release: there is nothing to monitor"):
        monitor(workspace, "tumor")


def test_without_the_reference_and_mlflow_it_is_unavailable(watched: Workspace) -> None:
    release(watched, version=2, run="b2" * 16)
    with pytest.raises(Unavailable, match="no MLflow server is known"):
        monitor(watched, "tumor")


def test_a_damaged_reference_leaves_the_cache(watched: Workspace) -> None:
    path = watched.state / "cache" / "reference" / ("a1" * 16) / "reference.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(Mistake, match=r"reference\.parquet of run .* is not readable"):
        monitor(watched, "tumor")
    assert not path.exists()


def test_since() -> None:
    assert parse_since("2h") == pytest.approx(time.time() - 7200, abs=5)
    assert parse_since("2026-01-02T00:00:00") == parse_since("2026-01-02T01:00:00+01:00")


class _Hook(BaseHTTPRequestHandler):
    received: list[dict[str, Any]]
    status = 204

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).received.append(json.loads(body))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Generator[type[_Hook]]:
    handler = type("Hook", (_Hook,), {"received": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("WHARF_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/secret-path")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_webhook_gets_the_alerts(
    watched: Workspace, monkeypatch: pytest.MonkeyPatch, hook: type[_Hook], capsys: pytest.CaptureFixture[str]
) -> None:
    values = healthy(400, seed=2)
    values[:, 0] *= 2
    log_now(watched, values)
    assert wharf(watched, monkeypatch, "monitor", "tumor") == 3
    (body,) = hook.received
    assert (body["model"], body["environment"], body["drifted"], len(body["alerts"])) == (
        "tumor",
        "dev",
        ["mean_radius"],
        1,
    )
    assert "secret-path" not in capsys.readouterr().err


def test_no_alert_no_webhook(watched: Workspace, monkeypatch: pytest.MonkeyPatch, hook: type[_Hook]) -> None:
    log_now(watched, healthy(400, seed=2))
    assert wharf(watched, monkeypatch, "monitor", "tumor") == 0
    assert hook.received == []


def test_a_webhook_that_fails_is_said(
    watched: Workspace, monkeypatch: pytest.MonkeyPatch, hook: type[_Hook], capsys: pytest.CaptureFixture[str]
) -> None:
    hook.status = 500
    log_now(watched, healthy(400, seed=2) * 2)
    assert wharf(watched, monkeypatch, "monitor", "tumor") == 3
    assert "WHARF_ALERT_WEBHOOK: 127.0.0.1 answered 500: the alerts are not delivered" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://example.com/x", "ftp://127.0.0.1/", "nonsense", "http://127.0.0.1:port/"])
def test_webhook_addresses_that_are_not_allowed(
    watched: Workspace, monkeypatch: pytest.MonkeyPatch, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHARF_ALERT_WEBHOOK", address)
    log_now(watched, healthy(400, seed=2) * 2)
    assert wharf(watched, monkeypatch, "monitor", "tumor") == 3
    assert "WHARF_ALERT_WEBHOOK: " in (shown := capsys.readouterr().err) and "not delivered" in shown


def test_raise_alerts_names_the_report(watched: Workspace) -> None:
    from ci.monitor import raise_alerts

    log_now(watched, healthy(400, seed=2) * 2)
    report = monitor(watched, "tumor")
    with pytest.raises(Refusal) as caught:
        raise_alerts(report)
    assert caught.value.lines == report.alerts
    assert report.path in caught.value.tip and Path(watched.root, report.path).is_file()
