"""`wharf monitor` of a ranking model: who asks, what is recommended, and what was chosen."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import numpy as np
import pytest

from bentos.predictors import load
from ci.demo import demo
from ci.errors import Mistake
from ci.label import Given, label
from ci.live.newer_rows import assemble
from ci.monitor import monitor
from ci.workspace import Workspace, load_spec
from tests.ci.live_traffic import RUN, release, write_log

USERS, ITEMS = 600, 200


@pytest.fixture
def watched(workspace: Workspace) -> Workspace:
    """movies version 1 in dev, its arrays drawn at random, in the cache as if read from MLflow."""
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 60, USERS)
    seen = [rng.choice(ITEMS, count, replace=False) for count in counts]
    arrays: dict[str, Any] = {
        "item_ids": np.arange(1000, 1000 + ITEMS),
        "user_ids": np.arange(1, USERS + 1),
        "user_factors": rng.normal(size=(USERS, 8)).astype(np.float32),
        "item_factors": rng.normal(size=(ITEMS, 8)).astype(np.float32),
        "item_bias": np.zeros(ITEMS, np.float32),
        "popularity": np.bincount(np.concatenate(seen), minlength=ITEMS).astype(np.float32),
        "seen_indptr": np.concatenate([[0], np.cumsum(counts)]),
        "seen_items": np.concatenate(seen).astype(np.int32),
    }
    folder = workspace.state / "cache" / "reference" / RUN / "model"
    folder.mkdir(parents=True)
    np.savez(folder / "artifact.npz", **arrays)
    digest = hashlib.sha256((folder / "artifact.npz").read_bytes()).hexdigest()
    serving = {"model": "movies", "task": "ranking", "format": "npz", "file": "artifact.npz", "sha256": digest}
    (folder / "serving.json").write_text(json.dumps(serving | {"columns": [], "classes": []}))
    release(workspace, "movies")
    return workspace


def ask(workspace: Workspace, users: list[int], k: int = 10, items: list[int] | None = None) -> list[dict[str, Any]]:
    """Log what the service would have answered (or `items` for everybody), four users to a request."""
    predictor = load(workspace.state / "cache" / "reference" / RUN / "model")
    lines: list[dict[str, Any]] = []
    for at in range(0, len(users), 4):
        part = users[at : at + 4]
        found, scores, _ = predictor.recommend(np.array(part), k)
        shown = [items] * len(part) if items else [row.tolist() for row in found]
        line = {"ts": time.time(), "id": f"r{at // 4}", "model": "movies", "version": 1, "environment": "dev", "k": k}
        line |= {"status": 200, "ms": 1.0, "users": part, "predictions": shown}
        lines.append(line | {"scores": [row.tolist() for row in scores]})
    write_log(workspace, lines, time.strftime("%Y-%m-%d", time.gmtime()), "movies")
    return lines


def usual(workspace: Workspace, count: int) -> list[int]:
    """Return users as they rated in training: each as often as it rated."""
    with np.load(workspace.state / "cache" / "reference" / RUN / "model" / "artifact.npz") as arrays:
        weights = np.diff(arrays["seen_indptr"])
    return np.random.default_rng(1).choice(np.arange(1, USERS + 1), count, p=weights / weights.sum()).tolist()


def test_usual_traffic_is_no_alert(watched: Workspace) -> None:
    ask(watched, usual(watched, 400))
    report = monitor(watched, "movies")
    assert (report.rows, report.alerts) == (400, [])
    assert [found.feature for found in [*report.features, *report.predictions]] == ["user", "item"]
    assert all(found.effect is not None for found in [*report.features, *report.predictions])
    assert 0.5 < report.coverage["coverage"] <= 1.0
    assert "wharf_coverage" in (watched.state / "reports" / "movies" / "dev" / "metrics.prom").read_text()


def test_new_users_are_drift_and_counted(watched: Workspace) -> None:
    ask(watched, usual(watched, 200) + list(range(10_000, 10_200)))
    report = monitor(watched, "movies")
    assert any(alert.startswith("movies/dev: user: ") for alert in report.alerts)
    unknown = next(rate for rate in report.quality if rate.check == "unknown user")
    assert (unknown.value, unknown.beyond) == (0.5, False)


def test_the_same_items_for_everybody_are_prediction_drift(watched: Workspace) -> None:
    ask(watched, usual(watched, 400), items=list(range(1000, 1010)))
    report = monitor(watched, "movies")
    assert any(alert.startswith("movies/dev: item: ") for alert in report.alerts)
    assert report.coverage["coverage"] == pytest.approx(10 / ITEMS)


def test_hit_rate_by_hand(watched: Workspace) -> None:
    lines = ask(watched, usual(watched, 40))
    first, last = lines[0]["predictions"][0][0], lines[0]["predictions"][1][9]
    given = [Given("r0", 0, first, ""), Given("r0", 1, last, ""), Given("r0", 2, 5, ""), Given("r0", 2, 6, "")]
    label(watched, "movies", "dev", [*given, Given("r1", 0, 5, "")])
    performance = monitor(watched, "movies").performance
    assert performance.labelled_rows == 4
    assert performance.metrics["hit_rate"] == 0.5
    assert performance.metrics["recall_at_10"] == 0.5
    assert performance.metrics["ndcg_at_10"] == pytest.approx((1 + 1 / np.log2(11)) / 4)


def test_chosen_items_become_ratings(watched: Workspace) -> None:
    lines = ask(watched, [7, 8, 9, 10])
    label(watched, "movies", "dev", [Given("r0", 1, 1003, ""), Given("r0", 1, 1004, ""), Given("r0", 0, "1001", "")])
    frame = assemble(watched, load_spec(watched, "movies"), "dev")
    assert frame[["user", "item", "rating"]].to_numpy().tolist() == [[7, 1001, 5], [8, 1003, 5], [8, 1004, 5]]
    assert (frame["timestamp"] >= int(lines[0]["ts"])).all()


def test_labels_of_a_ranking_model_are_item_ids(watched: Workspace) -> None:
    ask(watched, [7])
    with pytest.raises(Mistake, match=r"label: must be an item id, not 'The Matrix'"):
        label(watched, "movies", "dev", [Given("r0", 0, "The Matrix", "l.csv:2")])
    assert label(watched, "movies", "dev", [Given("r0", 0, 3, ""), Given("r0", 0, 3, "")]).repeated == 1


def test_an_artifact_that_is_not_the_one_recorded_is_refused(watched: Workspace) -> None:
    path = watched.state / "cache" / "reference" / RUN / "model" / "artifact.npz"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(Mistake, match=r"the artifact of run .* cannot be read"):
        monitor(watched, "movies")
    assert not path.exists()


def test_the_demo_is_for_tables(watched: Workspace) -> None:
    with pytest.raises(Mistake, match="movies is a ranking model"):
        demo(watched, "movies")
