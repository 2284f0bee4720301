"""The checks of the gate and their bootstrap, on arrays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.schema import Column
from ci.errors import Unavailable
from ci.gating import checks
from ci.gating.bootstrap import NOT_RESAMPLED, distribution, interval, kernel, percentiles, resample
from ci.gating.checks import Rival, against_champion, attempt, attempt_all, parts, slices, threshold, unseen
from ci.gating.evidence import Champion, Check, Interval
from ci.gating.scoring import Scored, Unusable, matrix, targets
from models.metrics import Ranked, compute, take
from models.spec import METRICS, AgainstChampion, Slice

RANDOM = np.random.default_rng(5)


def case(task: str, rows: int = 120) -> tuple[Any, Any]:
    """Return true values and outputs of a middling model, with ties among the scores."""
    random = np.random.default_rng(9)
    if task == "binary":
        y = random.integers(0, 2, rows)
        return y, np.round(np.clip(0.5 * y + random.uniform(0, 0.6, rows), 0, 1), 2)
    if task == "multiclass":
        y = random.integers(0, 4, rows)
        table = random.uniform(size=(rows, 4)) + np.eye(4)[y]
        return y, table / table.sum(axis=1, keepdims=True)
    if task == "regression":
        y = random.normal(50, 3, rows)
        return y, y + random.normal(size=rows)
    relevant = [np.unique(random.integers(0, 40, random.integers(1, 15))) for _ in range(rows)]
    items, popular = (np.array([random.permutation(40)[:20] for _ in range(rows)]) for _ in range(2))
    return relevant, Ranked(items, popular, 40)


ALL = [(task, metric) for task, metrics in METRICS.items() for metric in metrics]


@pytest.mark.parametrize(("task", "metric"), [one for one in ALL if one not in NOT_RESAMPLED])
def test_the_weighted_metric_is_the_metric_of_the_resample(task: str, metric: str) -> None:
    y_true, outputs = case(task)
    weighted = kernel(task, metric, y_true, outputs)
    rows = len(y_true)
    assert weighted(np.ones((1, rows)))[0] == pytest.approx(compute(task, metric, y_true, outputs), abs=1e-9)
    weights = next(resample(rows, 5))
    assert weights.shape == (5, rows) and (weights.sum(axis=1) == rows).all()
    for drawn, value in zip(weights, weighted(weights), strict=True):
        chosen = np.repeat(np.arange(rows), drawn.astype(int))
        assert value == pytest.approx(compute(task, metric, *take(task, y_true, outputs, chosen)), abs=1e-9)


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision"])
def test_a_resample_with_one_class_is_undefined(metric: str) -> None:
    y_true, outputs = case("binary", 20)
    weights = np.where(y_true == 1, 2.0, 0.0)[None, :]
    assert np.isnan(kernel("binary", metric, y_true, outputs)(weights)[0])


def test_the_same_seed_gives_the_same_resamples_in_any_block_size() -> None:
    first = np.concatenate(list(resample(50, 30)))
    assert (first == np.concatenate(list(resample(50, 30)))).all()
    assert (first != np.concatenate(list(resample(50, 30, seed=1)))).any()


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    values = RANDOM.normal(size=400)
    found = percentiles(distribution(lambda w: w @ values / w.sum(axis=1), 400), 0.95)
    assert found is not None
    half = 1.96 * values.std() / math.sqrt(400)
    assert found[0] == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found[1] == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_too_many_undefined_resamples_give_no_interval() -> None:
    assert percentiles(np.r_[np.full(60, np.nan), np.zeros(940)], 0.95) is None
    assert percentiles(np.r_[np.full(40, np.nan), np.zeros(960)], 0.95) == (0.0, 0.0)
    assert interval(1.0, np.full(10, np.nan)) == Interval(1.0)


def test_a_thousand_resamples_of_thousands_of_rows_take_about_a_second() -> None:
    y_true, outputs = case("binary", 3000)
    begun = time.process_time()
    distribution(kernel("binary", "roc_auc", y_true, outputs), 3000)
    assert time.process_time() - begun < 3


def scored(outputs: Any, y_true: Any = None, task: str = "binary", finite: int | None = None) -> Scored:
    truth = case(task)[0] if y_true is None else y_true
    rows = np.zeros((len(truth), 1), np.float32)
    good = len(truth) if finite is None else finite
    return Scored(task, SimpleNamespace(predict=lambda x: x), truth, outputs, rows, good)  # type: ignore[arg-type]


def rival(outputs: Any, y_true: Any = None) -> Rival:
    return Rival(Champion("prod", 3, "0" * 32), scored(outputs, y_true))


def worse(outputs: Any, by: float) -> Any:
    """Return scores with a share `by` of the rows guessed."""
    random = np.random.default_rng(3)
    return np.where(random.uniform(size=len(outputs)) < by, random.uniform(size=len(outputs)), outputs)


def test_a_worse_model_fails_against_the_champion_and_a_better_one_passes() -> None:
    _, good = case("binary")
    bad = worse(good, 0.5)
    rule = AgainstChampion(max_drop=0.02)
    refused = against_champion("roc_auc", rule, scored(bad), rival(good))
    assert not refused.passed and refused.value is not None and refused.value < -0.02
    assert "of version 3 in prod" in refused.detail
    assert against_champion("roc_auc", rule, scored(good), rival(bad)).passed
    assert against_champion("roc_auc", rule, scored(good), rival(good)).value == 0


def test_less_is_better_is_turned_round() -> None:
    _, good = case("binary")
    bad = worse(good, 0.5)
    rule = AgainstChampion(max_drop=0.01)
    assert not against_champion("log_loss", rule, scored(bad), rival(good)).passed
    assert against_champion("log_loss", rule, scored(good), rival(bad)).passed


def test_pairing_sees_a_small_difference_that_single_intervals_cannot() -> None:
    y, good = case("binary", 600)
    slightly = np.clip(good - 0.02 * (y == 1) * (np.arange(600) % 3 == 0), 0, 1)
    found = against_champion("brier", AgainstChampion(max_drop=0.01), scored(slightly, y), rival(good, y))
    ours = interval(compute("binary", "brier", y, slightly), distribution(kernel("binary", "brier", y, slightly), 600))
    assert ours.low is not None and ours.high is not None and ours.high - ours.low > 0.01
    assert found.passed


def test_more_confidence_asks_for_more() -> None:
    _, good = case("binary")
    bad = worse(good, 0.1)
    low = [
        against_champion("roc_auc", AgainstChampion(max_drop=1, confidence=c), scored(bad), rival(good)).value
        for c in (0.6, 0.9, 0.99)
    ]
    assert low == sorted(low, reverse=True) and low[0] != low[2]


def test_no_champion_passes_and_an_unusable_one_fails() -> None:
    _, good = case("binary")
    rule = AgainstChampion(max_drop=0.02)
    assert against_champion("roc_auc", rule, scored(good), None).passed
    gone = Rival(Champion("prod", 3, "0" * 32), None, "MLflow has no run")
    found = against_champion("roc_auc", rule, scored(good), gone)
    assert not found.passed and "could not be checked: version 3 in prod: MLflow has no run" in found.detail


def test_a_champion_that_predicts_nan_fails_the_check() -> None:
    _, good = case("binary")
    rule = AgainstChampion(max_drop=0.02)
    broken = np.where(np.arange(len(good)) == 3, np.nan, good)
    found = attempt("x", -0.02, lambda: against_champion("roc_auc", rule, scored(good), rival(broken)))
    assert not found.passed and "1 of 120 predictions are NaN" in found.detail


def test_coverage_is_compared_without_resampling() -> None:
    relevant, ranked = case("ranking")
    narrow = Ranked(np.repeat(ranked.items[:1], len(relevant), axis=0), ranked.baseline, 40)
    old = Rival(Champion("dev", 1, "0" * 32), scored(ranked, relevant, "ranking"))
    found = against_champion("coverage", AgainstChampion(max_drop=0.5), scored(narrow, relevant, "ranking"), old)
    assert not found.passed and found.value == pytest.approx(-0.75)


@pytest.mark.parametrize(
    ("kind", "value", "passed", "words"),
    [
        ("min", 0.9, True, "at least 0.8"),
        ("min", 0.8, True, "at least"),
        ("min", 0.7999, False, "below 0.8"),
        ("max", 0.8, True, "at most 0.8"),
        ("max", 0.81, False, "above 0.8"),
        ("min", math.nan, False, "not defined"),
        ("max", math.nan, False, "not defined"),
    ],
)
def test_thresholds(kind: str, value: float, passed: bool, words: str) -> None:
    found = threshold("f1", kind, 0.8, Interval(value))
    assert (found.name, found.bound, found.passed) == (f"metric.f1.{kind}", 0.8, passed)
    assert words in found.detail


def test_nan_predictions_fail_finite_and_have_no_metric() -> None:
    outputs = np.full(120, np.nan)
    one = scored(outputs, finite=0)
    assert not checks.finite(one).passed and checks.finite(one).value == 120
    gate: Any = SimpleNamespace(metrics={"roc_auc": None})
    assert math.isnan(checks.measure(gate, one)["roc_auc"].value)


@pytest.mark.parametrize(("megabytes", "passed"), [(0.5, True), (1.0, True), (1.001, False)])
def test_size(megabytes: float, passed: bool) -> None:
    assert checks.size(megabytes, 1).passed is passed


def test_quantile_bins_hold_every_row_once_and_missing_is_its_own() -> None:
    values = pd.Series([1.0, 2, 3, 4, 5, 6, 7, 8, 9, np.nan])
    found = parts(values, 3)
    assert [(label, int(rows.sum())) for label, rows in found] == [
        ("1..3.667", 3),
        ("3.667..6.333", 3),
        ("6.333..9", 3),
        ("missing", 1),
    ]
    assert (sum(rows.astype(int) for _, rows in found) == 1).all()
    assert [label for label, _ in parts(pd.Series([2.0, 2.0, 2.0]), 3)] == ["2"]
    assert [int(rows.sum()) for _, rows in parts(pd.Series([0.0] * 8 + [1.0, 2.0]), 2)] == [10]


def test_categories_are_parts_by_value() -> None:
    found = parts(pd.Series(["a", "b c", "a", None]), 3)
    assert [(label, int(rows.sum())) for label, rows in found] == [("a", 2), ("b_c", 1), ("missing", 1)]


def sliced(min_rows: int, values: list[float], **bound: float) -> list[Check]:
    y, good = np.array([0, 1] * 20), np.array([0.1, 0.9] * 20)
    good[:4] = 1 - good[:4]  # wrong in the first rows
    rule = Slice(column="age", bins=2, metric="accuracy", min_rows=min_rows, **bound)
    return slices(rule, scored(good, y), pd.DataFrame({"age": values}))


def test_a_bad_slice_fails_though_the_whole_is_fine() -> None:
    found = sliced(20, [*range(40)], min=0.85)
    assert [check.passed for check in found] == [False, True]
    assert found[0].value == pytest.approx(0.8) and "0.8000 is below 0.85 in 20 rows" in found[0].detail
    assert [check.passed for check in sliced(20, [*range(40)], min=0.5, max=0.9)] == [True, False]


def test_a_small_slice_is_said_and_not_judged() -> None:
    found = sliced(20, [0.0] * 30 + [1.0] * 9 + [np.nan], min=0.5)
    small = found[-1]
    assert small.passed and small.value is None
    assert small.name == "slice.age.missing.accuracy"
    assert small.detail == "not judged: 1 rows, min_rows is 20"


def test_no_slice_that_can_be_judged_is_a_failure() -> None:
    found = sliced(21, [*range(40)], min=0.5)
    assert [check.passed for check in found] == [True, True, False]
    assert "no part of age has the 21 rows" in found[-1].detail


def test_a_slice_whose_metric_is_undefined_fails() -> None:
    y, good = np.zeros(40, int), np.full(40, 0.1)
    rule = Slice(column="age", bins=2, metric="roc_auc", min=0.1)
    found = slices(rule, scored(good, y), pd.DataFrame({"age": range(40)}))
    assert [check.passed for check in found] == [False, False]
    assert "roc_auc is not defined on these 20 rows" in found[0].detail


def test_slices_of_a_ranking_model_are_judged_on_their_own_items() -> None:
    frame = pd.DataFrame(
        {"user": [1, 1, 2, 2], "item": [5, 6, 5, 7], "rating": [5.0, 5.0, 5.0, 2.0], "timestamp": [1, 9, 1, 9]}
    )
    ranked = Ranked(np.array([[5, 8], [8, 9]]), np.array([[1, 2], [1, 2]]), 10)
    users = np.array([1, 2])
    one = Scored("ranking", SimpleNamespace(), [np.array([5, 6]), np.array([5])], ranked, users, 2)  # type: ignore[arg-type]
    rule = Slice(column="timestamp", bins=2, metric="recall_at_10", min=0.4, min_rows=1)
    found = slices(rule, one, frame)
    assert [check.value for check in found] == [0.5, 0.0]  # early: 5 for both; late: only user 1 liked one


def test_a_check_that_raises_is_a_failed_check() -> None:
    def broken() -> Check:
        raise KeyError("gone")

    found = attempt("a.check", 3, broken)
    assert (found.name, found.bound, found.passed) == ("a.check", 3, False)
    assert found.detail == "could not be checked: KeyError: 'gone'"
    several = attempt_all("a.check", lambda: [broken()])
    assert [(check.name, check.passed) for check in several] == [("a.check", False)]


def test_mlflow_that_is_gone_is_not_a_failed_check() -> None:
    def gone() -> Check:
        raise Unavailable("MLflow does not answer")

    with pytest.raises(Unavailable):
        attempt("a.check", None, gone)


def test_rows_that_training_saw_are_found_whatever_their_type() -> None:
    held = pd.DataFrame({"a": [1, 2, 3], "kind": ["x", "y", None]})
    seen = pd.DataFrame({"a": [2.0, 9.0], "kind": ["y", "x"], "prediction": [0, 1]})
    assert unseen(held, seen).value == 1 and not unseen(held, seen).passed
    assert unseen(held, seen.tail(1)).passed
    assert not unseen(held, seen.drop(columns="kind")).passed


def test_slow_predictions_fail_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_CALLS", 5)
    monkeypatch.setattr(checks, "_WARM_UP", 1)
    slow = scored(np.zeros(120))
    slow.predictor.predict = lambda x: time.sleep(0.004)  # type: ignore[method-assign,assignment,misc]
    found = checks.latency(slow, 3)
    assert not found.passed and found.value is not None and found.value >= 4
    assert checks.latency(scored(np.zeros(120)), 3).passed


COLUMNS = (Column("a", "float"), Column("kind", "category", values=("x", "y")), Column("b", "float", nullable=True))


def test_the_matrix_is_what_serving_would_see() -> None:
    frame = pd.DataFrame({"b": [1.0, np.nan], "kind": ["y", "x"], "a": [3, 4], "extra": [0, 0]})
    found = matrix(frame, COLUMNS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([[3, 1, 1], [4, 0, np.nan]], np.float32))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="a"), "column 'a' is not in"),
        (lambda f: f.assign(a=[1.0, np.nan]), "column 'a' has 1 missing"),
        (lambda f: f.assign(kind=["x", "z"]), "unknown category 'z'"),
        (lambda f: f.assign(kind=["x", None]), "column 'kind' has 1 missing"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: Callable[[pd.DataFrame], pd.DataFrame], said: str) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "kind": ["x", "y"], "b": [0.0, 0.0]})
    with pytest.raises(Unusable, match=said):
        matrix(change(frame), COLUMNS)


@pytest.mark.parametrize(
    ("values", "said"), [([0, 2], "no index"), ([0, np.nan], "1 missing"), (["no", "yes"], "not a number")]
)
def test_targets_that_are_no_class_are_refused(values: list[Any], said: str) -> None:
    spec: Any = SimpleNamespace(task="binary", data=SimpleNamespace(target="y", classes=["no", "yes"]))
    with pytest.raises(Unusable, match=said):
        targets(pd.DataFrame({"y": values}), spec)
