"""Each trigger on both sides of its bound."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ci.live.triggers import Seen, decide
from models.spec import DriftTrigger, NewData, PerformanceTrigger, Retraining

NOW = datetime(2026, 11, 18, 12, 0, tzinfo=UTC).timestamp()  # a Wednesday
CALM = Seen(now=NOW, trained=NOW - 3600, labelled_since=0, drifted=(), judged=30, labelled=0, metrics={})


def one(settings: Retraining, seen: Seen):
    (found,) = decide(settings, seen)
    return found


def test_nothing_set_nothing_fires() -> None:
    assert decide(Retraining(), CALM) == []


@pytest.mark.parametrize(("days", "fired"), [(0.1, False), (2, False), (3, True), (30, True)])
def test_schedule_fires_when_a_date_passed_since_training(days: float, fired: bool) -> None:
    """Monday 03:00 was 2.4 days before that Wednesday."""
    found = one(Retraining(schedule="0 3 * * 1"), replace(CALM, trained=NOW - days * 86_400))
    assert found.fired is fired
    assert "last due 2026-11-16 03:00 UTC" in found.detail


def test_schedule_fires_when_never_trained() -> None:
    assert one(Retraining(schedule="0 3 * * 1"), replace(CALM, trained=None)).fired


@pytest.mark.parametrize(("rows", "fired"), [(0, False), (499, False), (500, True)])
def test_new_data(rows: int, fired: bool) -> None:
    found = one(Retraining(new_data=NewData(rows=500)), replace(CALM, labelled_since=rows))
    assert (found.fired, found.detail) == (fired, f"{rows} labelled rows since the last training, 500 fire")


def test_drift_counts_features() -> None:
    settings = Retraining(drift=DriftTrigger(features=2))
    assert not one(settings, replace(CALM, drifted=("a",))).fired
    found = one(settings, replace(CALM, drifted=("a", "b")))
    assert found.fired
    assert found.detail == "2 of 30 judged features drifted (a, b), 2 fire"
    assert "no feature could be judged" in one(settings, replace(CALM, judged=0)).detail


@pytest.mark.parametrize(("value", "fired"), [(0.94, True), (0.95, False), (0.99, False), (None, False)])
def test_performance_below_a_minimum(value: float | None, fired: bool) -> None:
    settings = Retraining(performance=PerformanceTrigger(metric="roc_auc", min=0.95, min_rows=100))
    assert one(settings, replace(CALM, labelled=100, metrics={"roc_auc": value})).fired is fired


def test_performance_above_a_maximum() -> None:
    settings = Retraining(performance=PerformanceTrigger(metric="rmse", max=2.0, min_rows=10))
    assert one(settings, replace(CALM, labelled=10, metrics={"rmse": 2.5})).fired
    assert not one(settings, replace(CALM, labelled=10, metrics={"rmse": 1.5})).fired


def test_performance_of_few_labels_is_not_judged() -> None:
    settings = Retraining(performance=PerformanceTrigger(metric="roc_auc", min=0.95, min_rows=100))
    found = one(settings, replace(CALM, labelled=99, metrics={"roc_auc": 0.1}))
    assert not found.fired
    assert "not judged, 99 labelled rows, 100 are needed" in found.detail
